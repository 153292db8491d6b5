// CUDA's stream and memory as owners that free themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "result.h"

namespace gatenorm {

inline Status check_cuda(cudaError_t code, const std::string& what) {
    if (code == cudaSuccess) return Done{};
    return failed("CUDA cannot " + what + " (" + cudaGetErrorString(code) + ")");
}

class Stream {
public:
    static Result<Stream> create() {
        Stream stream;
        Status created = check_cuda(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking), "make a stream");
        if (!created) return created.error();
        return stream;
    }

    Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
    Stream& operator=(Stream&& other) noexcept {
        std::swap(stream_, other.stream_);
        return *this;
    }
    ~Stream() {
        if (stream_) cudaStreamDestroy(stream_);
    }

    cudaStream_t get() const { return stream_; }

private:
    Stream() = default;
    cudaStream_t stream_ = nullptr;
};

// Device memory that only grows. What it held is lost when it does.
class DeviceBuffer {
public:
    DeviceBuffer() = default;
    DeviceBuffer(DeviceBuffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~DeviceBuffer() {
        if (data_) cudaFree(data_);
    }

    Status reserve(std::size_t size) {
        if (data_ && size <= size_) return Done{};
        DeviceBuffer larger;
        // TensorRT wants an address even for a tensor without elements.
        larger.size_ = size ? size : 1;
        Status given = check_cuda(cudaMalloc(&larger.data_, larger.size_),
                                  "give " + std::to_string(size) + " bytes of device memory");
        if (!given) return given;
        *this = std::move(larger);
        return Done{};
    }

    void* data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace gatenorm
