// What the tests of all ops share: buffers with guard values on both sides, comparison with a float64 twin,
// gradients by central differences of the twin, and runs over every instruction set and number of threads.
// Twins are plain loops in double inside each test; nothing here knows any op.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/bf16.h"
#include "core/error.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "kernels/isa.h"

using Values = std::vector<double>;

inline double to_double(float x) { return x; }
inline double to_double(bf16 x) { return to_float(x); }
inline double to_double(int32_t x) { return x; }
template <class T>
T rounded(double x) {
    if constexpr (std::is_same_v<T, bf16>) {
        return to_bf16(static_cast<float>(x));
    } else {
        return static_cast<T>(x);
    }
}

// n elements of T between guards of 64 bytes and more. Guards and fresh elements are signalling NaNs (as f32
// and as bf16) that differ from buffer to buffer: reading past the end spoils the result, writing or adding
// past it fails the test when the buffer dies (the sum with a signalling NaN is a quiet one), and an output
// element that nobody set compares unequal to everything. `offset` moves the data that many elements away
// from a 64-byte boundary.
template <class T>
class Guarded {
public:
    explicit Guarded(int64_t n, int64_t offset = 0)
        : buffer_((n + offset) * static_cast<int64_t>(sizeof(T)) + 2 * kGuardBytes), n_(n), offset_(offset) {
        static uint16_t serial = 0;
        guard_ = static_cast<uint16_t>(0x7f81 + serial++ % 60);
        auto* words = static_cast<uint16_t*>(buffer_.data());
        std::fill(words, words + buffer_.bytes() / 2, guard_);
    }
    explicit Guarded(const Values& values, int64_t offset = 0)
        : Guarded(static_cast<int64_t>(values.size()), offset) {
        for (int64_t i = 0; i < n_; ++i) data()[i] = rounded<T>(values[static_cast<size_t>(i)]);
    }
    Guarded(Guarded&&) = default;
    ~Guarded() {
        if (buffer_.data() == nullptr) return;
        const auto* bytes = static_cast<const uint8_t*>(buffer_.data());
        const auto* begin = reinterpret_cast<const uint8_t*>(data());
        const auto* end = begin + n_ * static_cast<int64_t>(sizeof(T));
        for (const uint8_t* p = bytes; p < bytes + buffer_.bytes(); ++p) {
            if (p == begin) p = end;
            const uint8_t expected = static_cast<uint8_t>((p - bytes) % 2 ? guard_ >> 8 : guard_ & 0xff);
            if (*p == expected) continue;
            ADD_FAILURE() << "guard overwritten " << (p < begin ? p - begin : p - end) << " bytes from the "
                          << (p < begin ? "beginning" : "end") << " of a buffer of " << n_ << " elements";
            return;
        }
    }

    T* data() const {
        return reinterpret_cast<T*>(static_cast<uint8_t*>(buffer_.data()) + kGuardBytes) + offset_;
    }
    T& operator[](int64_t i) const { return data()[i]; }
    int64_t size() const { return n_; }
    Tensor tensor(int64_t d0, int64_t d1 = -1) const { return tensor_of(data(), d0, d1); }
    Tensor tensor() const { return tensor_of(data(), n_); }
    Values values() const {
        Values result;
        for (int64_t i = 0; i < n_; ++i) result.push_back(to_double(data()[i]));
        return result;
    }
    std::vector<uint8_t> bytes() const {
        const auto* begin = reinterpret_cast<const uint8_t*>(data());
        return {begin, begin + n_ * static_cast<int64_t>(sizeof(T))};
    }

private:
    static constexpr int64_t kGuardBytes = 128;
    Buffer buffer_;
    int64_t n_, offset_;
    uint16_t guard_;
};

// Normal values; independent of core/rng, so that a fault there cannot hide here.
inline Values normal_values(int64_t n, uint32_t seed, double scale = 1, double mean = 0) {
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal(mean, scale);
    Values values(static_cast<size_t>(n));
    for (double& v : values) v = normal(engine);
    return values;
}
// The same as T represents them: what the op and its twin both start from.
template <class T>
Values representable(Values values) {
    for (double& v : values) v = to_double(rounded<T>(v));
    return values;
}
inline std::vector<int32_t> random_ids(int64_t n, int32_t begin, int32_t end, uint32_t seed) {
    std::mt19937 engine(seed);
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (int32_t& id : ids) id = begin + static_cast<int32_t>(engine() % static_cast<uint32_t>(end - begin));
    return ids;
}

// Expects `actual` close to `expected` by two measures:
//   scale_free   1 - 2<x,y> / (|x|^2 + |y|^2) = |x-y|^2 / (|x|^2 + |y|^2): the square of a relative error
//   max_relative max |x-y| / max(|y|, rms(y)): no single element may be off, however many there are
// A NaN on either side fails. `relative` bounds max_relative; scale_free is bounded by its square.
inline void expect_close(const Values& actual, const Values& expected, double relative,
                         const std::string& what) {
    ASSERT_EQ(actual.size(), expected.size()) << what;
    double difference = 0, norms = 0, square = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        norms += actual[i] * actual[i] + expected[i] * expected[i];
        square += expected[i] * expected[i];
    }
    const double rms = expected.empty() ? 0 : std::sqrt(square / static_cast<double>(expected.size()));
    for (size_t i = 0; i < expected.size(); ++i) {
        const double bound = relative * std::max(std::abs(expected[i]), rms);
        if (std::abs(actual[i] - expected[i]) <= bound) continue;
        ADD_FAILURE() << what << ": element " << i << " of " << expected.size() << ": expected "
                      << expected[i] << ", got " << actual[i] << ", allowed difference " << bound;
        return;
    }
    if (norms == 0) return;
    EXPECT_LE(difference / norms, relative * relative) << what;
}

// Bounds for results of dtype T whose inputs were exact. f32: a few roundings of 6e-8 each, and sums that
// grow them slowly. bf16: computed in f32 and rounded once, at most 2^-9 of the value, doubled for what f32
// adds at a tie.
template <class T>
constexpr double kTolerance = std::is_same_v<T, bf16> ? 1.0 / 256 : 1e-5;

// d loss / d x by central differences. With twins in double and inputs of order 1, truncation (~step^2) and
// rounding (~1e-16 / step) both stay below 1e-8, far under any f32 tolerance.
template <class Loss>
Values numeric_gradient(Loss&& loss, Values x, double step = 1e-4) {
    Values gradient(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double kept = x[i];
        x[i] = kept + step;
        const double above = loss(std::as_const(x));
        x[i] = kept - step;
        const double below = loss(std::as_const(x));
        x[i] = kept;
        gradient[i] = (above - below) / (2 * step);
    }
    return gradient;
}
inline double dot(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

// Runs body() on every instruction set of this machine, and names the set in failures.
template <class Body>
void for_each_isa(Body&& body) {
    for (int isa = 0; isa <= static_cast<int>(best_isa()); ++isa) {
        set_isa(static_cast<Isa>(isa));
        SCOPED_TRACE(isa_name(static_cast<Isa>(isa)));
        body();
    }
    set_isa(best_isa());
}

// run() returns the bytes of every output; they must be the same for 1, 2 and 3 threads.
template <class Run>
void expect_same_bits_for_any_threads(Run&& run) {
    const int kept = num_threads();
    set_num_threads(1);
    const std::vector<uint8_t> alone = run();
    for (int threads : {2, 3}) {
        set_num_threads(threads);
        EXPECT_TRUE(run() == alone) << "other bits with " << threads << " threads than with 1";
    }
    set_num_threads(kept);
}
inline std::vector<uint8_t> joined(std::initializer_list<std::vector<uint8_t>> parts) {
    std::vector<uint8_t> all;
    for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
}

// The message of the InternalError that body() must throw, "" when it throws none.
template <class Body>
std::string check_failure(Body&& body) {
    try {
        body();
    } catch (const InternalError& error) {
        return error.what();
    }
    return "";
}
inline void expect_mentions(const std::string& message, std::initializer_list<const char*> parts) {
    for (const char* part : parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "no \"" << part << "\" in \"" << message << "\"";
    }
}
