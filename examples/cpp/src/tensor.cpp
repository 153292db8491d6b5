#include "tensor.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace gatenorm {
namespace {

struct Row {
    DType dtype;
    const char* name;
    std::size_t size;
};

constexpr Row kTypes[] = {
    {DType::float32, "float32", 4}, {DType::float16, "float16", 2}, {DType::bfloat16, "bfloat16", 2},
    {DType::float64, "float64", 8}, {DType::int64, "int64", 8},     {DType::int32, "int32", 4},
    {DType::int8, "int8", 1},       {DType::uint8, "uint8", 1},     {DType::boolean, "bool", 1},
};

const Row& row_of(DType dtype) {
    for (const Row& row : kTypes) {
        if (row.dtype == dtype) return row;
    }
    return kTypes[0];  // Every enumerator has a row.
}

template <class T>
T read_at(const std::byte* data, std::size_t index) {
    T value;
    std::memcpy(&value, data + index * sizeof(T), sizeof(T));
    return value;
}

template <class T>
Bytes cast_all(const std::vector<std::int64_t>& values) {
    Bytes bytes(values.size() * sizeof(T));
    for (std::size_t index = 0; index < values.size(); ++index) {
        const T value = static_cast<T>(values[index]);
        std::memcpy(bytes.data() + index * sizeof(T), &value, sizeof(T));
    }
    return bytes;
}

float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float from_half(std::uint16_t half) {
    const int exponent = (half >> 10) & 0x1f;
    const int mantissa = half & 0x3ff;
    float size;
    if (exponent == 0x1f) {
        size = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    } else if (exponent == 0) {
        size = std::ldexp(static_cast<float>(mantissa), -24);
    } else {
        size = std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
    }
    return half & 0x8000 ? -size : size;
}

}  // namespace

Result<DType> dtype_named(const std::string& name) {
    for (const Row& row : kTypes) {
        if (name == row.name) return row.dtype;
    }
    return bad_input("no known element type: " + name);
}

std::string name_of(DType dtype) { return row_of(dtype).name; }

std::size_t size_of(DType dtype) { return row_of(dtype).size; }

std::string text_of(const Shape& shape) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        text += (axis ? ", " : "") + std::to_string(shape[axis]);
    }
    return text + "]";
}

Result<std::size_t> count_of(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t length : shape) {
        if (length < 0) return bad_input("a shape has a length that is not known: " + text_of(shape));
        const auto factor = static_cast<std::size_t>(length);
        if (factor != 0 && count > std::numeric_limits<std::size_t>::max() / 16 / factor) {
            return bad_input("a shape is too large: " + text_of(shape));
        }
        count *= factor;
    }
    return count;
}

Result<std::size_t> bytes_of(const Shape& shape, DType dtype) {
    Result<std::size_t> count = count_of(shape);
    if (!count) return count.error();
    return *count * size_of(dtype);
}

Result<Bytes> encode(const std::vector<std::int64_t>& values, DType dtype) {
    switch (dtype) {
        case DType::int64:
            return cast_all<std::int64_t>(values);
        case DType::int32:
            return cast_all<std::int32_t>(values);
        case DType::boolean:
            return cast_all<bool>(values);
        case DType::float32:
            return cast_all<float>(values);
        default:
            return bad_input("tokens, mask and positions are whole numbers, not " + name_of(dtype));
    }
}

Result<std::vector<float>> decode(const std::byte* data, std::size_t count, DType dtype) {
    std::vector<float> values(count);
    for (std::size_t index = 0; index < count; ++index) {
        switch (dtype) {
            case DType::float32:
                values[index] = read_at<float>(data, index);
                break;
            case DType::float16:
                values[index] = from_half(read_at<std::uint16_t>(data, index));
                break;
            case DType::bfloat16:
                values[index] = from_bits(std::uint32_t{read_at<std::uint16_t>(data, index)} << 16);
                break;
            case DType::float64:
                values[index] = static_cast<float>(read_at<double>(data, index));
                break;
            default:
                return bad_input("logits are floating-point numbers, not " + name_of(dtype));
        }
    }
    return values;
}

Result<std::vector<float>> decode_last(const void* data, std::size_t count, std::size_t row, DType dtype) {
    return decode(static_cast<const std::byte*>(data) + (count - row) * size_of(dtype), row, dtype);
}

}  // namespace gatenorm
