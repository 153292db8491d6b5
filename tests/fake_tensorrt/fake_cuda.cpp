#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "device.h"

using fake::Device;

namespace {

std::string setting(const char* name, const std::string& otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

std::string gpu() { return setting("FAKE_GPU", "8.9"); }

}  // namespace

namespace fake {

Device& Device::get() {
    static Device device;
    return device;
}

Device::~Device() {
    const std::string file = setting("FAKE_TENSORRT_REPORT", "");
    if (file.empty()) return;
    std::ofstream(file) << "{\"bytes_to_host\": " << bytes_to_host << ", \"profile_switches\": " << profile_switches
                        << ", \"live_buffers\": " << memory.size() << ", \"live_streams\": " << streams.size() << "}";
}

bool Device::holds(const void* data, std::size_t size) const {
    char* start = static_cast<char*>(const_cast<void*>(data));
    auto entry = memory.upper_bound(start);
    if (entry == memory.begin()) return false;
    --entry;
    return start + size <= entry->first + entry->second;
}

}  // namespace fake

const char* cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorNoDevice) return "no CUDA-capable device is detected";
    return error == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = gpu() == "none" ? 0 : 1;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const std::string capability = gpu();
    const std::size_t dot = capability.find('.');
    *value = std::stoi(attribute == cudaDevAttrComputeCapabilityMajor ? capability : capability.substr(dot + 1));
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t size) {
    *data = nullptr;
    if (size > std::stoul(setting("FAKE_GPU_BYTES", "1000000000"))) return cudaErrorMemoryAllocation;
    *data = std::aligned_alloc(256, (size + 255) / 256 * 256);
    std::memset(*data, 0x7f, size);  // Nobody may count on zeros.
    Device::get().memory[static_cast<char*>(*data)] = size;
    return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
    for (const cudaStream_t stream : Device::get().streams) cudaStreamSynchronize(stream);
    Device::get().memory.erase(static_cast<char*>(data));
    std::free(data);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = new CUstream_st;
    Device::get().streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Device::get().streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    const void* on_device = kind == cudaMemcpyHostToDevice ? to : from;
    if (!Device::get().holds(on_device, size)) std::abort();
    if (kind == cudaMemcpyDeviceToHost) Device::get().bytes_to_host += size;
    stream->work.push_back([=] { std::memcpy(to, from, size); });
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    while (!stream->work.empty()) {
        stream->work.front()();
        stream->work.pop_front();
    }
    return cudaSuccess;
}
