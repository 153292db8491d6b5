# Sets GATENORM_RUNTIMES, and for each of them makes the target gatenorm_<runtime> with its headers and libraries.

find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp)
if(NOT NLOHMANN_JSON_INCLUDE_DIR)
  message(FATAL_ERROR "nlohmann/json.hpp is not found; install nlohmann-json, or set NLOHMANN_JSON_INCLUDE_DIR")
endif()

set(GATENORM_RUNTIMES "")

# Make a program of `name`, if every variable behind it is set: a header folder first, then libraries.
macro(gatenorm_runtime name)
  set(GATENORM_PARTS "${ARGN}")
  set(GATENORM_FOUND TRUE)
  foreach(part IN LISTS GATENORM_PARTS)
    if(NOT ${part})
      set(GATENORM_FOUND FALSE)
    endif()
  endforeach()
  if(GATENORM_FOUND)
    list(POP_FRONT GATENORM_PARTS headers)
    add_library(gatenorm_${name} INTERFACE)
    target_include_directories(gatenorm_${name} SYSTEM INTERFACE "${${headers}}")
    foreach(part IN LISTS GATENORM_PARTS)
      target_link_libraries(gatenorm_${name} INTERFACE "${${part}}")
    endforeach()
    list(APPEND GATENORM_RUNTIMES ${name})
  endif()
endmacro()

# OpenVINO brings its own CMake files, in its SDK and in its Python wheel.
find_package(OpenVINO CONFIG QUIET COMPONENTS Runtime)
if(OpenVINO_FOUND)
  add_library(gatenorm_openvino INTERFACE)
  target_link_libraries(gatenorm_openvino INTERFACE openvino::runtime)
  list(APPEND GATENORM_RUNTIMES openvino)
endif()

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h HINTS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES include onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES lib lib64)
gatenorm_runtime(onnxruntime ONNXRUNTIME_INCLUDE_DIR ONNXRUNTIME_LIBRARY)

# Only the runtime library of CUDA is needed, no compiler.
find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS "${CUDAToolkit_ROOT}" ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES include)
find_library(CUDART_LIBRARY cudart HINTS "${CUDAToolkit_ROOT}" ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES lib64 lib lib/x64)

# Both have a header of the same name: only the place that is given counts for TensorRT-RTX.
find_path(TENSORRT_INCLUDE_DIR NvInfer.h HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
find_library(TENSORRT_LIBRARY NAMES nvinfer nvinfer_11 nvinfer_10 HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES lib lib64)
gatenorm_runtime(tensorrt TENSORRT_INCLUDE_DIR TENSORRT_LIBRARY CUDART_LIBRARY)

find_path(TENSORRT_RTX_INCLUDE_DIR NvInfer.h HINTS "${TENSORRT_RTX_ROOT}" PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(TENSORRT_RTX_LIBRARY NAMES tensorrt_rtx HINTS "${TENSORRT_RTX_ROOT}" PATH_SUFFIXES lib lib64)
gatenorm_runtime(tensorrt-rtx TENSORRT_RTX_INCLUDE_DIR TENSORRT_RTX_LIBRARY CUDART_LIBRARY)

foreach(flavour tensorrt tensorrt-rtx)
  if(TARGET gatenorm_${flavour})
    target_include_directories(gatenorm_${flavour} SYSTEM INTERFACE "${CUDA_INCLUDE_DIR}")
  endif()
endforeach()

if(NOT GATENORM_RUNTIMES)
  message(FATAL_ERROR "no runtime is found; give its place with CMAKE_PREFIX_PATH, see docs/cpp.md")
endif()
message(STATUS "programs: ${GATENORM_RUNTIMES}")
