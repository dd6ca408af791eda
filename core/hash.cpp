// Hashes of bytes and files: SHA-256 by OpenSSL's libcrypto, which uses the processor's own instructions, and
// XXH3-128 by xxHash. Declared in core/io.h.
#include <openssl/evp.h>
#include <xxhash.h>

#include <memory>

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

class Sha256 {
public:
    Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
        CHECK(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1, "no SHA-256");
    }
    void add(const void* data, int64_t bytes) {
        CHECK(EVP_DigestUpdate(context_.get(), data, static_cast<size_t>(bytes)) == 1, cat({bytes}));
    }
    std::string hex() {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned int size = 0;
        CHECK(EVP_DigestFinal_ex(context_.get(), digest, &size) == 1, "no digest");
        return hex_digits(digest, size);
    }

private:
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256_hex(const void* data, int64_t bytes) {
    Sha256 hash;
    hash.add(data, bytes);
    return hash.hex();
}

std::string sha256_hex(std::string_view text) {
    return sha256_hex(text.data(), static_cast<int64_t>(text.size()));
}

std::string sha256_file(const std::string& path) {
    // Read, not mapped: the pages of a map would count as this process's memory.
    Sha256 hash;
    read_pieces(path, [&](const void* data, int64_t bytes) { hash.add(data, bytes); });
    return hash.hex();
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
