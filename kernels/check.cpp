// The checks themselves, out of line and compiled once: none of them is hot.
#include "kernels/check.h"

#include <string>

#include "core/error.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {

using Dims = ArgumentCheck::Dims;

[[noreturn]] void fail(const ArgumentCheck& check, const char* argument, const std::string& expected,
                       const std::string& actual) {
    fail_check(__FILE__, __LINE__, check.op,
               cat({"argument ", argument, ": expected ", expected, ", got ", actual}));
}

[[noreturn]] void fail(const ArgumentCheck& check, const char* argument, const std::string& expected,
                       const Tensor& t) {
    std::string actual = t.absent() ? "no tensor" : shape_text(t);
    if (!t.absent() && t.device != check.device) actual += " on another device";
    if (!t.absent() && t.data == nullptr) actual += " without memory";
    fail(check, argument, expected, actual);
}

bool misplaced(const ArgumentCheck& check, const Tensor& t) {
    return t.device != check.device || (t.data == nullptr && t.size() > 0);
}

bool fits(const ArgumentCheck& check, const Tensor& t, Dims dims) {
    if (t.rank != static_cast<int>(dims.size()) || misplaced(check, t)) return false;
    const int64_t* actual = t.dims;
    for (int64_t dim : dims) {
        if (dim >= 0 && dim != *actual) return false;
        ++actual;
    }
    return true;
}

bool is_float(const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; }

std::string dims_text(Dims dims) {
    std::string text = "[";
    for (int64_t dim : dims) {
        if (text.size() > 1) text += ',';
        text += dim < 0 ? "*" : std::to_string(dim);
    }
    return text += ']';
}

}  // namespace

void ArgumentCheck::tensor(const char* argument, const Tensor& t, DType dtype, Dims dims) const {
    if (t.dtype != dtype || !fits(*this, t, dims))
        fail(*this, argument, dtype_name(dtype) + dims_text(dims), t);
}

void ArgumentCheck::floats(const char* argument, const Tensor& t, Dims dims) const {
    if (!is_float(t) || !fits(*this, t, dims)) fail(*this, argument, "f32|bf16" + dims_text(dims), t);
}

void ArgumentCheck::float_dtype(const char* argument, const Tensor& t) const {
    if (!is_float(t) || t.absent() || misplaced(*this, t)) fail(*this, argument, "f32|bf16", t);
}

void ArgumentCheck::elements(const char* argument, const Tensor& t, DType dtype, int64_t count) const {
    if (t.dtype == dtype && t.size() == count && !t.absent() && !misplaced(*this, t)) return;
    fail(*this, argument, cat({dtype_name(dtype), " of ", count, " elements"}), t);
}

void ArgumentCheck::like(const char* argument, const Tensor& t, const Tensor& other) const {
    bool same = t.dtype == other.dtype && t.rank == other.rank && !misplaced(*this, t);
    for (int i = 0; same && i < t.rank; ++i) same = t.dims[i] == other.dims[i];
    if (!same) fail(*this, argument, other.absent() ? "no tensor" : shape_text(other), t);
}

void ArgumentCheck::scratch(const Tensor& t, int64_t bytes) const {
    if (t.bytes() < bytes || misplaced(*this, t))
        fail(*this, "scratch", cat({"at least ", bytes, " bytes"}), t);
}

void ArgumentCheck::ids(const char* argument, const Tensor& t, int64_t count, int64_t begin,
                        int64_t end) const {
    tensor(argument, t, DType::i32, {count});
    if (t.device != Device::cpu) return;  // a look at them would be a wait for the device
    const int32_t* id = t.as<int32_t>();
    for (int64_t i = 0; i < count; ++i) {
        if (id[i] >= begin && id[i] < end) continue;
        fail(*this, argument, cat({"values in [", begin, ",", end, ")"}), cat({id[i], " at ", i}));
    }
}

void ArgumentCheck::absmax(const Tensor& t) const {
    if (!t.absent()) tensor("absmax", t, DType::f32, {1});
}

void ArgumentCheck::that(bool condition, const char* argument, const char* expected, double actual) const {
    if (!condition) fail(*this, argument, expected, cat({actual}));
}
#endif
