// A value or an error: nothing in these programs is reported by an exception.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace gatenorm {

// The exit codes of the programs; the numbers are those of the gatenorm command line.
enum class ExitCode : int {
    ok = 0,
    failed = 1,     // the runtime failed while it ran
    usage = 2,      // the command line is wrong
    bad_input = 3,  // a file is missing or damaged, or the manifest does not fit the engine or graph
    refused = 5,    // another version, no fitting GPU, or a prompt that is too long
    tampered = 13,  // a size or digest is not the manifest's
};

// What is wrong, where, and what to do: one line.
struct Error {
    ExitCode code;
    std::string message;
};

template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : content_(std::move(value)) {}
    Result(Error error) : content_(std::move(error)) {}

    explicit operator bool() const { return std::holds_alternative<T>(content_); }
    T& operator*() & { return std::get<T>(content_); }
    const T& operator*() const& { return std::get<T>(content_); }
    T&& operator*() && { return std::get<T>(std::move(content_)); }
    T* operator->() { return &std::get<T>(content_); }
    const T* operator->() const { return &std::get<T>(content_); }
    const Error& error() const { return std::get<Error>(content_); }

private:
    std::variant<T, Error> content_;
};

// The value of what has none.
struct Done {};
using Status = Result<Done>;

inline Error bad_input(std::string message) { return {ExitCode::bad_input, std::move(message)}; }
inline Error refused(std::string message) { return {ExitCode::refused, std::move(message)}; }
inline Error tampered(std::string message) { return {ExitCode::tampered, std::move(message)}; }
inline Error failed(std::string message) { return {ExitCode::failed, std::move(message)}; }

}  // namespace gatenorm
