// What the benchmarks share: the comma-separated lists of their flags, checked before anything is measured,
// and quantiles of what was. A line whose label is not what ran would be worse than none.
#pragma once
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"
#include "kernels/isa.h"
#include "kernels/matmul.h"

// The parts of `text`, none of them empty. `flag` is for the message, here and below.
inline std::vector<std::string> split_list(const std::string& text, const std::string& flag) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(',', begin), text.size());
        if (end == begin)
            fail_input({.what = "empty part of a list",
                        .where = flag,
                        .expected = "values with one comma between two",
                        .actual = "`" + text + "`",
                        .hint = flag + " a,b"});
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

// A whole number of at least 1, all of `text`.
inline int64_t parse_count(std::string_view text, const std::string& flag, const std::string& hint) {
    int64_t count = 0;
    const char* const end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, count);
    if (parsed.ec != std::errc{} || parsed.ptr != end || count < 1 || count > int64_t{1} << 24)
        fail_input({.what = "bad value",
                    .where = flag,
                    .expected = "a number from 1 to 16777216",
                    .actual = cat({"`", text, "`"}),
                    .hint = hint});
    return count;
}
inline std::vector<int64_t> parse_counts(const std::string& text, const std::string& flag) {
    std::vector<int64_t> counts;
    for (const std::string& part : split_list(text, flag))
        counts.push_back(parse_count(part, flag, flag + " 256,1024"));
    return counts;
}

struct BatchShape {
    int64_t rows, seq_len;
};
// "4x64,1x1024"
inline std::vector<BatchShape> parse_shapes(const std::string& text, const std::string& flag) {
    std::vector<BatchShape> shapes;
    for (const std::string& part : split_list(text, flag)) {
        const size_t x = std::min(part.find('x'), part.size());
        const std::string hint = flag + " 4x64,1x1024 (rows x tokens)";
        const std::string_view rows = std::string_view(part).substr(0, x);
        const std::string_view seq_len = std::string_view(part).substr(std::min(x + 1, part.size()));
        shapes.push_back({parse_count(rows, flag, hint), parse_count(seq_len, flag, hint)});
    }
    return shapes;
}

struct Precision {
    std::string name;
    DType dtype;  // of weights and activations
    MatmulMath math;
    bool fp8 = false;  // of blocks' products in training
};
// with_fp8: for whole training steps.
inline std::vector<Precision> parse_precisions(const std::string& text, const std::string& flag,
                                               bool with_fp8 = false) {
    const Precision known[] = {{"fp32", DType::f32, MatmulMath::f32},
                               {"bf16", DType::bf16, MatmulMath::bf16},
                               {"mixed", DType::f32, MatmulMath::bf16},
                               {"fp8", DType::bf16, MatmulMath::bf16, true}};
    std::vector<Precision> precisions;
    for (const std::string& part : split_list(text, flag)) {
        const auto found = std::find_if(std::begin(known), std::end(known), [&](const Precision& p) {
            return p.name == part && (with_fp8 || !p.fp8);
        });
        if (found == std::end(known))
            fail_input({.what = "bad value",
                        .where = flag,
                        .expected = with_fp8 ? "fp32, bf16, mixed or fp8" : "fp32, bf16 or mixed",
                        .actual = "`" + part + "`",
                        .hint = flag + " fp32,bf16"});
        precisions.push_back(*found);
    }
    return precisions;
}

inline std::vector<Isa> parse_isas(const std::string& text, const std::string& flag) {
    std::vector<Isa> isas;
    for (const std::string& part : split_list(text, flag)) isas.push_back(isa_from_name(part.c_str()));
    return isas;
}

// The value that a share `q` of the values lies below; no value in between is made up.
inline double quantile(std::vector<double> values, double q) {
    CHECK(!values.empty() && q >= 0 && q <= 1, cat({values.size(), " values, q=", q}));
    std::sort(values.begin(), values.end());
    return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}
