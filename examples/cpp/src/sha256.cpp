#include "sha256.h"

#include <array>
#include <cstdint>
#include <fstream>
#include <vector>

namespace gatenorm {
namespace {

constexpr std::size_t kBlock = 64;

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr std::array<std::uint32_t, 64> kRounds = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// The first 32 bits of the fractional parts of the square roots of the first 8 primes.
using State = std::array<std::uint32_t, 8>;
constexpr State kStart = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

constexpr std::uint32_t rotated(std::uint32_t word, int by) { return word >> by | word << (32 - by); }

void add_block(State& state, const unsigned char* block) {
    std::array<std::uint32_t, 64> words;
    for (std::size_t i = 0; i < 16; ++i) {
        words[i] = std::uint32_t{block[4 * i]} << 24 | std::uint32_t{block[4 * i + 1]} << 16 |
                   std::uint32_t{block[4 * i + 2]} << 8 | std::uint32_t{block[4 * i + 3]};
    }
    for (std::size_t i = 16; i < 64; ++i) {
        const std::uint32_t early = words[i - 15], late = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (rotated(early, 7) ^ rotated(early, 18) ^ early >> 3) +
                   (rotated(late, 17) ^ rotated(late, 19) ^ late >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t i = 0; i < 64; ++i) {
        const std::uint32_t first =
            h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[i] + words[i];
        const std::uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const State added = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < state.size(); ++i) state[i] += added[i];
}

// The last block or two: what is left, a one bit, zeros, and the length in bits.
std::vector<unsigned char> padded(const unsigned char* rest, std::size_t size, std::uint64_t total) {
    std::vector<unsigned char> tail(rest, rest + size);
    tail.push_back(0x80);
    while (tail.size() % kBlock != kBlock - 8) tail.push_back(0);
    for (int shift = 56; shift >= 0; shift -= 8) tail.push_back(static_cast<unsigned char>(total * 8 >> shift));
    return tail;
}

std::string hexadecimal(const State& state) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) text += digits[word >> shift & 0xf];
    }
    return text;
}

class Digest {
public:
    // All but the last piece have to be whole blocks.
    void add(const unsigned char* bytes, std::size_t size) {
        const std::size_t whole = size - size % kBlock;
        for (std::size_t at = 0; at < whole; at += kBlock) add_block(state_, bytes + at);
        rest_.assign(bytes + whole, bytes + size);
        total_ += size;
    }

    std::string text() {
        const std::vector<unsigned char> tail = padded(rest_.data(), rest_.size(), total_);
        for (std::size_t at = 0; at < tail.size(); at += kBlock) add_block(state_, tail.data() + at);
        return hexadecimal(state_);
    }

private:
    State state_ = kStart;
    std::vector<unsigned char> rest_;
    std::uint64_t total_ = 0;
};

}  // namespace

std::string sha256_of(const std::string& bytes) {
    Digest digest;
    digest.add(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    return digest.text();
}

Result<std::string> sha256_of(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) return bad_input(file.string() + ": cannot be read");
    Digest digest;
    std::vector<unsigned char> buffer(std::size_t{1} << 20);
    while (stream) {
        stream.read(reinterpret_cast<char*>(buffer.data()), static_cast<std::streamsize>(buffer.size()));
        if (stream.bad()) return bad_input(file.string() + ": cannot be read to its end");
        if (stream.gcount() > 0) digest.add(buffer.data(), static_cast<std::size_t>(stream.gcount()));
    }
    return digest.text();
}

}  // namespace gatenorm
