// Hashes of bytes and files: SHA-256 by libsodium, XXH3-128 by xxHash. Declared in core/io.h.
#include <sodium.h>
#include <xxhash.h>

#include "core/error.h"
#include "core/io.h"

namespace {

std::string hex_digits(const unsigned char* bytes, size_t count) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < count; ++i) {
        text += kDigits[bytes[i] >> 4];
        text += kDigits[bytes[i] & 15];
    }
    return text;
}

}  // namespace

std::string sha256_hex(const void* data, int64_t bytes) {
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(digest, static_cast<const unsigned char*>(data),
                       static_cast<unsigned long long>(bytes));
    return hex_digits(digest, sizeof digest);
}

std::string sha256_hex(std::string_view text) {
    return sha256_hex(text.data(), static_cast<int64_t>(text.size()));
}

std::string sha256_file(const std::string& path) {
    // Read, not mapped: the pages of a map would count as this process's memory.
    crypto_hash_sha256_state state;
    crypto_hash_sha256_init(&state);
    read_pieces(path, [&](const void* data, int64_t bytes) {
        crypto_hash_sha256_update(&state, static_cast<const unsigned char*>(data),
                                  static_cast<unsigned long long>(bytes));
    });
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_final(&state, digest);
    return hex_digits(digest, sizeof digest);
}

Hash128 hash128(const void* data, int64_t bytes, uint64_t seed) {
    const XXH128_hash_t h = XXH3_128bits_withSeed(data, static_cast<size_t>(bytes), seed);
    return {h.low64, h.high64};
}

std::string hex(const Hash128& h) {
    XXH128_canonical_t canonical;  // big-endian, the upper half first: what `xxhsum -H2` prints
    XXH128_canonicalFromHash(&canonical, {h.low, h.high});
    return hex_digits(canonical.digest, sizeof canonical.digest);
}
