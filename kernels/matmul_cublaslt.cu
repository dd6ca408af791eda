// Matrix products by cuBLASLt, where the machine has it: it knows each GPU's own tensor core instructions. It
// is loaded when the first product needs it, so that programs start without it. For each kind of product
// (shape, types, strides, epilogue) the library's suggestions and our own kernel for Hopper are timed once;
// the choice is kept (matmul_plan_cache.h). Only deterministic ones count: splits of the inner dimension are
// added in order, in f32. Never run on a GPU yet. INGOT_MATMUL=own keeps the library out,
// INGOT_MATMUL=library our own kernel where the library can do the product.
//
// FP8: the library multiplies e4m3 by e4m3 or e5m2, both by lines of inner indices, with the operands'
// inverse scales as its A and B scales. Its fast accumulation, which leaves sums in the tensor cores' 14
// bits, is off for all products, forward ones too: our kernel adds up in f32 as well (matmul_hopper_fp8.cu),
// so that a choice by time is no choice of precision.
#include "kernels/matmul_gpu.h"

#if defined(__CUDACC__) && __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "core/device.h"
#include "kernels/matmul_plan_cache.h"
#include "kernels/workspace.h"

namespace GPU_NAMESPACE {
namespace {

constexpr int kSuggestions = 8, kTimedRuns = 5;

// The functions of the library that are used, each under its own name.
#define CUBLASLT_FUNCTIONS(use)                                                                          \
    use(Create) use(GetVersion) use(MatmulDescCreate) use(MatmulDescDestroy) use(MatmulDescSetAttribute) \
        use(MatrixLayoutCreate) use(MatrixLayoutDestroy) use(MatmulPreferenceCreate)                     \
            use(MatmulPreferenceDestroy) use(MatmulPreferenceSetAttribute) use(MatmulAlgoGetHeuristic)   \
                use(MatmulAlgoConfigGetAttribute) use(Matmul)

// A name of our own: nvcc 13.0 fails on containers of the library's nameless struct.
struct Algorithm {
    cublasLtMatmulAlgo_t data;
};

struct Library {
#define DECLARE(name) decltype(&cublasLt##name) name = nullptr;
    CUBLASLT_FUNCTIONS(DECLARE)
#undef DECLARE
    cublasLtHandle_t handle = nullptr;
    std::unique_ptr<MatmulPlanCache> plans;
};

void require(cublasStatus_t status, const char* call) {
    CHECK(status == CUBLAS_STATUS_SUCCESS, cat({call, " gave status ", static_cast<int>(status)}));
}
void require(cudaError_t error, const char* call) {
    CHECK(error == cudaSuccess, cat({call, ": ", cudaGetErrorString(error)}));
}
#define REQUIRE(call) require(call, #call)

bool is_wanted(std::string_view who) {
    const char* wanted = std::getenv("INGOT_MATMUL");
    return wanted == nullptr || wanted == who;
}

// Null where the library is not there or not wanted.
Library* open_library() {
    if (!is_wanted("library")) return nullptr;
    const std::string file = cat({"libcublasLt.so.", CUBLAS_VER_MAJOR});
    void* shared = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (shared == nullptr) shared = dlopen(("/usr/local/cuda/lib64/" + file).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (shared == nullptr) return nullptr;
    auto library = std::make_unique<Library>();
#define LOAD(name)                                                                                \
    library->name = reinterpret_cast<decltype(&cublasLt##name)>(dlsym(shared, "cublasLt" #name)); \
    if (library->name == nullptr) return nullptr;
    CUBLASLT_FUNCTIONS(LOAD)
#undef LOAD
    if (library->Create(&library->handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
    const DeviceInfo gpu = device_info(kThisDevice);
    library->plans = std::make_unique<MatmulPlanCache>(
        matmul_plan_path(),
        cat({"ingot matmul plans 2, cublasLt ", static_cast<int64_t>(library->GetVersion()), ", ", gpu.name,
             ", ", gpu.num_multiprocessors, " multiprocessors"}));
    return library.release();  // kept to the program's end
}
Library* library() {
    static Library* const opened = open_library();
    return opened;
}

cudaDataType_t type_of(DType dtype) {
    switch (dtype) {
        case DType::e4m3: return CUDA_R_8F_E4M3;
        case DType::e5m2: return CUDA_R_8F_E5M2;
        case DType::f32: return CUDA_R_32F;
        default: return CUDA_R_16BF;
    }
}

// What of a product the library can do: in its own order, epilogue(scale a b + beta c + bias).
struct Fused {
    cublasLtEpilogue_t epilogue;
    Matrix c, aux;
    float beta;
};
// The manual's table of FP8 kernels (cublasLtMatmul): sizes in multiples of 16, a bias of bf16 whatever the
// result is, no activation with a result of bf16 or f32.
bool can_fuse_fp8(const Product& product) {
    const Output& o = product.output;
    return o.rows % 16 == 0 && o.columns % 16 == 0 && product.inner % 16 == 0 &&
           (o.bias.data == nullptr || o.bias.dtype == DType::bf16) && o.pre_activation.data == nullptr &&
           o.gelu_pre.data == nullptr;
}
std::optional<Fused> fuse(const Product& product) {
    const Output& o = product.output;
    if (o.absmax != nullptr) return std::nullopt;
    const bool both_f32 = product.a.lines.dtype == DType::f32 && product.b.lines.dtype == DType::f32;
    const bool both_bf16 = product.a.lines.dtype == DType::bf16 && product.b.lines.dtype == DType::bf16;
    if (!(product.of_fp8() ? can_fuse_fp8(product) : product.bf16_math ? both_bf16 : both_f32))
        return std::nullopt;
    if (both_f32 && o.out.dtype != DType::f32) return std::nullopt;
    if (!product.a.packed || !product.b.packed || !o.packed || product.inner == 0) return std::nullopt;
    const DType dtype = o.out.dtype;
    const auto other = [&](const Matrix& m) { return m.data != nullptr && m.dtype != dtype; };
    if (!product.of_fp8() && other(o.bias)) return std::nullopt;
    if (other(o.pre_activation) || other(o.gelu_pre) || other(o.addend)) return std::nullopt;
    const bool activates = o.pre_activation.data != nullptr || o.gelu_pre.data != nullptr;
    if (activates && o.addend.data != nullptr) return std::nullopt;  // added last, not within the activation
    if (o.pre_activation.data != nullptr && o.gelu_pre.data != nullptr) return std::nullopt;

    Fused fused{CUBLASLT_EPILOGUE_DEFAULT, o.addend, {}, o.addend_scale};
    if (fused.c.data == nullptr) fused.c = o.out, fused.beta = 0;
    const bool bias = o.bias.data != nullptr;
    if (o.pre_activation.data != nullptr) {
        fused.epilogue = bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
        fused.aux = o.pre_activation;
    } else if (o.gelu_pre.data != nullptr) {
        if (bias) return std::nullopt;
        fused.epilogue = CUBLASLT_EPILOGUE_DGELU;
        fused.aux = o.gelu_pre;
    } else if (bias) {
        fused.epilogue = CUBLASLT_EPILOGUE_BIAS;
    }
    return fused;
}

// One call of the library, described. Its matrices lie by columns: ours are its transposed ones, so our out
// is its b a, with our columns as its rows.
class Call {
public:
    Call(const Library& library, const Product& product, const Fused& fused)
        : library_(library), product_(product), fused_(fused) {
        const Output& o = product.output;
        const bool bf16_operands = product.a.lines.dtype == DType::bf16;
        REQUIRE(library.MatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        // Lines of inner indices are columns [inner, outer] to the library.
        set(CUBLASLT_MATMUL_DESC_TRANSA, product.b.by_row ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, product.a.by_row ? CUBLAS_OP_N : CUBLAS_OP_T);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, fused.epilogue);
        if (product.of_fp8()) {
            set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, o.scale_b);
            set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, o.scale_a);
            set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{0});
        }
        if (o.bias.data != nullptr) {
            set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias.data);
            set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(o.bias.dtype));
        }
        if (fused.aux.data != nullptr) {
            set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, fused.aux.data);
            set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, fused.aux.stride);
            if (bf16_operands) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, type_of(fused.aux.dtype));
        }
        const auto layout = [&](cublasLtMatrixLayout_t* created, const Matrix& m, int64_t lines,
                                int64_t length) {
            REQUIRE(library.MatrixLayoutCreate(created, type_of(m.dtype), static_cast<uint64_t>(length),
                                               static_cast<uint64_t>(lines), m.stride));
        };
        const auto operand = [&](cublasLtMatrixLayout_t* created, const Operand& x, int64_t outer) {
            const int64_t inner = product.inner;
            layout(created, x.lines, x.by_row ? outer : inner, x.by_row ? inner : outer);
        };
        operand(&a_, product.b, o.columns);
        operand(&b_, product.a, o.rows);
        layout(&c_, fused.c, o.rows, o.columns);
        layout(&d_, o.out, o.rows, o.columns);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() {
        for (cublasLtMatrixLayout_t layout : {a_, b_, c_, d_}) {
            if (layout != nullptr) library_.MatrixLayoutDestroy(layout);
        }
        if (description_ != nullptr) library_.MatmulDescDestroy(description_);
    }

    // Everything that an algorithm may depend on.
    std::string key() const {
        const Output& o = product_.output;
        const auto matrix = [](const Matrix& m) {
            return cat({"-", dtype_name(m.dtype), "/", m.stride, "/", alignment(m.data)});
        };
        std::string text =
            cat({o.rows, "x", o.columns, "x", product_.inner, product_.a.by_row ? "-rows" : "-columns",
                 product_.b.by_row ? "-rows" : "-columns", "-epilogue", static_cast<int>(fused_.epilogue),
                 fused_.beta != 0 ? "-adds" : "-sets"});
        for (const Matrix& m : {product_.a.lines, product_.b.lines, fused_.c, o.out}) text += matrix(m);
        if (fused_.aux.data != nullptr) text += matrix(fused_.aux);
        return text;
    }

    // The library's suggestions, best first, without those whose sums depend on who comes first.
    std::vector<Algorithm> suggestions() const {
        cublasLtMatmulPreference_t preference = nullptr;
        REQUIRE(library_.MatmulPreferenceCreate(&preference));
        const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
            REQUIRE(library_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kLibraryBytes));
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
               static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(product_.b.lines.data));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(product_.a.lines.data));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(fused_.c.data));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(product_.output.out.data));
        cublasLtMatmulHeuristicResult_t results[kSuggestions] = {};
        int count = 0;
        const cublasStatus_t status = library_.MatmulAlgoGetHeuristic(
            library_.handle, description_, a_, b_, c_, d_, preference, kSuggestions, results, &count);
        library_.MatmulPreferenceDestroy(preference);
        if (status != CUBLAS_STATUS_SUCCESS) count = 0;  // no algorithm for this product
        std::vector<Algorithm> algorithms;
        for (int i = 0; i < count; ++i) {
            uint32_t scheme = 0;
            size_t written = 0;
            REQUIRE(library_.MatmulAlgoConfigGetAttribute(
                &results[i].algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof(scheme), &written));
            const bool in_order =
                scheme == CUBLASLT_REDUCTION_SCHEME_NONE || scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
            if (results[i].state == CUBLAS_STATUS_SUCCESS && in_order)
                algorithms.push_back({results[i].algo});
        }
        return algorithms;
    }

    // False when the library refuses.
    bool run(const Algorithm& algorithm, void* out, cudaStream_t stream) const {
        return library_.Matmul(library_.handle, description_, &product_.output.scale, product_.b.lines.data,
                               a_, product_.a.lines.data, b_, &fused_.beta, fused_.c.data, c_, out, d_,
                               &algorithm.data,
                               device_workspace(kThisDevice, Workspace::library, kLibraryBytes),
                               kLibraryBytes, stream) == CUBLAS_STATUS_SUCCESS;
    }

private:
    // In bytes; more than 256 helps nobody.
    static uint32_t alignment(const void* address) {
        uint32_t bytes = 256;
        while (reinterpret_cast<uintptr_t>(address) % bytes != 0) bytes /= 2;
        return bytes;
    }
    template <class T>
    void set(cublasLtMatmulDescAttributes_t attribute, T value) {
        REQUIRE(library_.MatmulDescSetAttribute(description_, attribute, &value, sizeof(value)));
    }

    const Library& library_;
    const Product& product_;
    const Fused& fused_;
    cublasLtMatmulDesc_t description_ = nullptr;
    cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr, d_ = nullptr;
};

// What a product is done by: one of the library's algorithms, or else one of our own plans.
struct Choice {
    std::optional<Algorithm> algorithm;
    MatmulPlan own = {};

    // For the cache: the algorithm as it lies in memory, or the tile and the splits.
    std::vector<uint8_t> bytes() const {
        if (!algorithm)
            return {static_cast<uint8_t>(own.tile), static_cast<uint8_t>(own.splits),
                    static_cast<uint8_t>(own.splits >> 8)};
        const auto* begin = reinterpret_cast<const uint8_t*>(&*algorithm);
        return {begin, begin + sizeof(Algorithm)};
    }
    // Nullopt where the bytes are neither an algorithm nor one of these plans.
    static std::optional<Choice> from(const std::vector<uint8_t>& bytes, const std::vector<MatmulPlan>& own) {
        if (bytes.size() == sizeof(Algorithm)) {
            Algorithm algorithm;
            std::memcpy(&algorithm, bytes.data(), sizeof(algorithm));
            return Choice{algorithm};
        }
        for (const MatmulPlan& plan : own) {
            if (Choice choice{std::nullopt, plan}; choice.bytes() == bytes) return choice;
        }
        return std::nullopt;
    }
};

// Runs that are timed; each says whether it could.
using Runs = std::vector<std::function<bool()>>;
size_t fastest(const Runs& runs, cudaStream_t stream) {
    cudaEvent_t begin, end;
    REQUIRE(cudaEventCreate(&begin));
    REQUIRE(cudaEventCreate(&end));
    size_t best = 0;
    float best_ms = 0;
    for (size_t i = 0; i < runs.size(); ++i) {
        float least_ms = -1;
        for (int run_number = 0; run_number <= kTimedRuns; ++run_number) {  // the first warms up
            REQUIRE(cudaEventRecord(begin, stream));
            if (!runs[i]()) break;
            REQUIRE(cudaEventRecord(end, stream));
            REQUIRE(cudaEventSynchronize(end));
            float ms = 0;
            REQUIRE(cudaEventElapsedTime(&ms, begin, end));
            if (run_number > 0 && (least_ms < 0 || ms < least_ms)) least_ms = ms;
        }
        if (least_ms >= 0 && (best_ms == 0 || least_ms < best_ms)) best = i, best_ms = least_ms;
    }
    REQUIRE(cudaEventDestroy(begin));
    REQUIRE(cudaEventDestroy(end));
    return best;
}

// What does this product best; nullopt when the library has no algorithm for it.
std::optional<Choice> choose(Library& library, const Call& call, const Product& product, const Fused& fused,
                             const std::vector<MatmulPlan>& own, Stream stream) {
    const std::string key = call.key();
    if (const auto* known = library.plans->find(key)) {
        if (const auto choice = Choice::from(*known, own)) return choice;
    }
    const std::vector<Algorithm> suggested = call.suggestions();
    if (suggested.empty()) return std::nullopt;
    const cudaStream_t queue = stream_of(stream);
    cudaStreamCaptureStatus capture;
    REQUIRE(cudaStreamIsCapturing(queue, &capture));
    if (capture != cudaStreamCaptureStatusNone) return Choice{suggested.front()};  // nothing can be timed

    // What the product is added to must not be added to again by every run.
    Product timed = product;
    Matrix& out = timed.output.out;
    void* substitute = nullptr;
    if (fused.beta != 0 && fused.c.data == out.data) {
        const int64_t bytes = product.output.rows * out.stride * dtype_bytes(out.dtype);
        if (cudaMalloc(&substitute, static_cast<size_t>(bytes)) != cudaSuccess) {
            cudaGetLastError();
            return Choice{suggested.front()};  // no room for timing
        }
        out.data = substitute;
    }
    std::vector<Choice> choices;
    Runs runs;
    for (const Algorithm& algorithm : suggested) {
        choices.push_back({algorithm});
        runs.push_back([&, algorithm] { return call.run(algorithm, out.data, queue); });
    }
    for (const MatmulPlan& plan : own) {
        choices.push_back({std::nullopt, plan});
        runs.push_back([&, plan] {
            multiply_own(timed, plan, stream);
            return true;
        });
    }
    const Choice best = choices[fastest(runs, queue)];
    if (substitute != nullptr) REQUIRE(cudaFree(substitute));
    library.plans->add(key, best.bytes());
    return best;
}

}  // namespace

bool library_matmul(const Product& product, const std::vector<MatmulPlan>& own, Stream stream) {
    const std::optional<Fused> fused = fuse(product);
    if (!fused) return false;
    Library* const opened = library();
    if (opened == nullptr) return false;
    const Call call(*opened, product, *fused);
    const std::vector<MatmulPlan> wanted = is_wanted("own") ? own : std::vector<MatmulPlan>();
    const std::optional<Choice> choice = choose(*opened, call, product, *fused, wanted, stream);
    if (!choice) return false;
    if (choice->algorithm) return call.run(*choice->algorithm, product.output.out.data, stream_of(stream));
    multiply_own(product, choice->own, stream);
    return true;
}

}  // namespace GPU_NAMESPACE

#else  // the emulator, or a toolkit without the library's header

namespace GPU_NAMESPACE {

bool library_matmul(const Product&, const std::vector<MatmulPlan>&, Stream) { return false; }

}  // namespace GPU_NAMESPACE
#endif
