// Typed reading of JSON. What does not fit is thrown as Misfit, which manifest.cpp turns into an Error.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace gatenorm {

struct Misfit {
    std::string message;
};

// A JSON value, and the way to it from the top.
class JsonReader {
public:
    JsonReader(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {}

    JsonReader operator[](const std::string& key) const {
        if (!value_->is_object()) misfit("is to be an object");
        const auto found = value_->find(key);
        if (found == value_->end()) misfit("has no " + key);
        return {*found, where_ + "." + key};
    }

    bool is_null() const { return value_->is_null(); }
    bool is_number() const { return value_->is_number(); }

    std::string text() const {
        if (!value_->is_string()) misfit("is to be a text");
        return value_->get<std::string>();
    }

    std::int64_t number() const {
        const bool fits = value_->is_number_unsigned()
                              ? value_->get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}
                              : value_->is_number_integer();
        if (!fits) misfit("is to be a whole number");
        return value_->get<std::int64_t>();
    }

    std::int64_t number_from(std::int64_t least) const {
        const std::int64_t found = number();
        if (found < least) misfit("is to be " + std::to_string(least) + " or more");
        return found;
    }

    // `read` applied to every element of a list.
    template <class Read>
    auto each(Read read) const -> std::vector<decltype(read(std::declval<JsonReader>()))> {
        if (!value_->is_array()) misfit("is to be a list");
        std::vector<decltype(read(*this))> found;
        for (std::size_t index = 0; index < value_->size(); ++index) {
            found.push_back(read(JsonReader((*value_)[index], where_ + "[" + std::to_string(index) + "]")));
        }
        return found;
    }

    // `read` applied to what is not null.
    template <class Read>
    auto unless_null(Read read) const -> std::optional<decltype(read(std::declval<JsonReader>()))> {
        if (is_null()) return std::nullopt;
        return read(*this);
    }

    [[noreturn]] void misfit(const std::string& what) const { throw Misfit{where_ + " " + what}; }

private:
    const nlohmann::json* value_;
    std::string where_;
};

}  // namespace gatenorm
