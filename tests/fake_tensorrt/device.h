// The state behind the stand-in of CUDA, as the stand-in of TensorRT sees it.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <set>

#include "cuda_runtime_api.h"

struct CUstream_st {
    std::deque<std::function<void()>> work;
};

namespace fake {

struct Device {
    std::map<char*, std::size_t> memory;  // Live allocations and their sizes.
    std::set<cudaStream_t> streams;
    std::size_t bytes_to_host = 0;
    int profile_switches = 0;

    // Counts and leaks go to the file FAKE_TENSORRT_REPORT when the program ends.
    ~Device();
    bool holds(const void* data, std::size_t size) const;
    static Device& get();
};

}  // namespace fake
