// Argument checks shared by all ops and backends. A wrong argument is a fault of the program, not of its
// user: it throws InternalError with the op, the argument, what was expected and what came.
#pragma once
#include <initializer_list>

#include "core/tensor.h"

// Checks one op's arguments in turn:
//   const ArgumentCheck check{"rope_forward", qkv.device};   check.floats("qkv", qkv, {num_tokens, -1});
// Every tensor must have memory on `device`. A dimension of -1 may have any size.
struct ArgumentCheck {
    const char* op;
    Device device;

    using Dims = std::initializer_list<int64_t>;
    void tensor(const char* argument, const Tensor& t, DType dtype, Dims dims) const;
    void floats(const char* argument, const Tensor& t, Dims dims) const;  // f32|bf16 of that shape
    void float_dtype(const char* argument, const Tensor& t) const;        // f32|bf16 of any shape
    void elements(const char* argument, const Tensor& t, DType dtype,
                  int64_t count) const;  // any shape of that size
    void like(const char* argument, const Tensor& t,
              const Tensor& other) const;                // dtype and shape of another
    void scratch(const Tensor& t, int64_t bytes) const;  // at least
    void ids(const char* argument, const Tensor& t, int64_t count, int64_t begin,
             int64_t end) const;         // i32 [begin, end), which is looked at on the CPU only
    void absmax(const Tensor& t) const;  // [1] f32, or absent
    void that(bool condition, const char* argument, const char* expected, double actual) const;
};
