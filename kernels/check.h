// Argument checks shared by all ops and backends. A wrong argument is a fault of the program, not of its
// user: it throws InternalError with the op, the argument, what was expected and what came.
#pragma once
#include <initializer_list>
#include <string>

#include "core/error.h"
#include "core/tensor.h"

// Checks one op's arguments in turn: ArgumentCheck check("rope_forward", qkv.device); check.floats("qkv",
// qkv, {n, -1}); A dimension of -1 may have any size.
struct ArgumentCheck {
    const char* op;
    Device device;

    using Dims = std::initializer_list<int64_t>;

    void tensor(const char* argument, const Tensor& t, DType dtype, Dims dims) const {
        if (t.dtype != dtype || !fits(t, dims)) fail(argument, cat({dtype_name(dtype), dims_text(dims)}), t);
    }
    void floats(const char* argument, const Tensor& t, Dims dims) const {
        const bool is_float = t.dtype == DType::f32 || t.dtype == DType::bf16;
        if (!is_float || !fits(t, dims)) fail(argument, cat({"f32|bf16", dims_text(dims)}), t);
    }
    // The same dtype and shape, whatever the rank.
    void like(const char* argument, const Tensor& t, const Tensor& other) const {
        bool same = t.dtype == other.dtype && t.rank == other.rank && !misplaced(t);
        for (int i = 0; same && i < t.rank; ++i) same = t.dims[i] == other.dims[i];
        if (!same) fail(argument, other.absent() ? "absent" : shape_text(other), t);
    }
    void scratch(const Tensor& t, int64_t bytes) const {
        if (t.bytes() < bytes || misplaced(t)) fail("scratch", cat({"at least ", bytes, " bytes"}), t);
    }
    void that(bool condition, const char* argument, const char* expected, int64_t actual) const {
        if (!condition) fail_text(argument, expected, cat({actual}));
    }

private:
    bool misplaced(const Tensor& t) const {
        return t.device != device || (t.data == nullptr && t.size() > 0);
    }
    bool fits(const Tensor& t, Dims dims) const {
        if (t.rank != static_cast<int>(dims.size()) || misplaced(t)) return false;
        int i = 0;
        for (int64_t dim : dims) {
            if (dim >= 0 && dim != t.dims[i]) return false;
            ++i;
        }
        return true;
    }
    static std::string dims_text(Dims dims) {
        std::string text = "[";
        for (int64_t dim : dims) {
            if (text.size() > 1) text += ',';
            text += dim < 0 ? "*" : std::to_string(dim);
        }
        return text += ']';
    }
    [[noreturn]] void fail(const char* argument, const std::string& expected, const Tensor& t) const {
        std::string actual = t.absent() ? "no tensor" : shape_text(t);
        if (!t.absent() && t.device != device) actual += " on another device";
        if (!t.absent() && t.data == nullptr) actual += " without memory";
        fail_text(argument, expected, actual);
    }
    [[noreturn]] void fail_text(const char* argument, const std::string& expected,
                                const std::string& actual) const {
        fail_check(__FILE__, __LINE__, op,
                   cat({"argument ", argument, ": expected ", expected, ", got ", actual}));
    }
};
