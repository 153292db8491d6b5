// Element types, shapes, and the bytes of tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "result.h"

namespace gatenorm {

enum class DType { float32, float16, bfloat16, float64, int64, int32, int8, uint8, boolean };

using Shape = std::vector<std::int64_t>;
using Bytes = std::vector<std::byte>;

// The type that a manifest names, such as "float16".
Result<DType> dtype_named(const std::string& name);
std::string name_of(DType dtype);
std::size_t size_of(DType dtype);

// "[1, 3, 0, 64]"
std::string text_of(const Shape& shape);

// How many elements a shape has; an error where a length is negative or the number does not fit.
Result<std::size_t> count_of(const Shape& shape);
Result<std::size_t> bytes_of(const Shape& shape, DType dtype);

// Whole numbers as the elements of an input.
Result<Bytes> encode(const std::vector<std::int64_t>& values, DType dtype);

// `count` floating-point elements at `data`, which may lie at any address.
Result<std::vector<float>> decode(const std::byte* data, std::size_t count, DType dtype);

// The last `row` of the `count` elements at `data`: of logits, those of the last token.
Result<std::vector<float>> decode_last(const void* data, std::size_t count, std::size_t row, DType dtype);

}  // namespace gatenorm
