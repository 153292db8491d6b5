# Sets GATENORM_RUNTIMES, and for each of them makes the target gatenorm_<runtime> with its headers and libraries.

find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp)
if(NOT NLOHMANN_JSON_INCLUDE_DIR)
  message(FATAL_ERROR "nlohmann/json.hpp is not found; install nlohmann-json, or set NLOHMANN_JSON_INCLUDE_DIR")
endif()

set(GATENORM_RUNTIMES "")

# gatenorm_runtime(NAME HEADERS variable... LIBRARIES variable...): a target, if all of these variables are set.
function(gatenorm_runtime name)
  cmake_parse_arguments(PART "" "" "HEADERS;LIBRARIES" ${ARGN})
  foreach(part IN LISTS PART_HEADERS PART_LIBRARIES)
    if(NOT ${part})
      return()
    endif()
  endforeach()
  add_library(gatenorm_${name} INTERFACE)
  foreach(part IN LISTS PART_HEADERS)
    target_include_directories(gatenorm_${name} SYSTEM INTERFACE "${${part}}")
  endforeach()
  foreach(part IN LISTS PART_LIBRARIES)
    target_link_libraries(gatenorm_${name} INTERFACE "${${part}}")
  endforeach()
  set(GATENORM_RUNTIMES ${GATENORM_RUNTIMES} ${name} PARENT_SCOPE)
endfunction()

# OpenVINO brings its own CMake files, in its SDK and in its Python wheel.
find_package(OpenVINO CONFIG QUIET COMPONENTS Runtime)
if(OpenVINO_FOUND)
  add_library(gatenorm_openvino INTERFACE)
  target_link_libraries(gatenorm_openvino INTERFACE openvino::runtime)
  list(APPEND GATENORM_RUNTIMES openvino)
endif()

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h HINTS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES include onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES lib lib64)
gatenorm_runtime(onnxruntime HEADERS ONNXRUNTIME_INCLUDE_DIR LIBRARIES ONNXRUNTIME_LIBRARY)

# Only the runtime library of CUDA is needed, no compiler.
find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS "${CUDAToolkit_ROOT}" ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES include)
find_library(CUDART_LIBRARY cudart HINTS "${CUDAToolkit_ROOT}" ENV CUDA_PATH PATHS /usr/local/cuda
  PATH_SUFFIXES lib64 lib lib/x64)

# Both have a header of the same name: only the place that is given counts for TensorRT-RTX.
find_path(TENSORRT_INCLUDE_DIR NvInfer.h HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
find_library(TENSORRT_LIBRARY NAMES nvinfer nvinfer_11 nvinfer_10 HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES lib lib64)
gatenorm_runtime(tensorrt HEADERS TENSORRT_INCLUDE_DIR CUDA_INCLUDE_DIR LIBRARIES TENSORRT_LIBRARY CUDART_LIBRARY)

find_path(TENSORRT_RTX_INCLUDE_DIR NvInfer.h HINTS "${TENSORRT_RTX_ROOT}" PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(TENSORRT_RTX_LIBRARY NAMES tensorrt_rtx HINTS "${TENSORRT_RTX_ROOT}" PATH_SUFFIXES lib lib64)
gatenorm_runtime(tensorrt-rtx
  HEADERS TENSORRT_RTX_INCLUDE_DIR CUDA_INCLUDE_DIR
  LIBRARIES TENSORRT_RTX_LIBRARY CUDART_LIBRARY)

if(NOT GATENORM_RUNTIMES)
  message(FATAL_ERROR "no runtime is found; give its place with CMAKE_PREFIX_PATH, see docs/cpp.md")
endif()
message(STATUS "programs: ${GATENORM_RUNTIMES}")
