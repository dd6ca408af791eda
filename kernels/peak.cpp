// NVIDIA's data sheets: dense (without sparsity) TFLOP/s at boost clock.
#include "kernels/peak.h"

#include <string_view>

#include "kernels/fma_peak.h"
#include "kernels/isa.h"

#ifdef ISA_PLAIN
namespace {

struct Gpu {
    std::string_view name;  // part of the driver's name; the first that matches counts
    double bf16, f32;       // TFLOP/s
};
constexpr Gpu kGpus[] = {
    {"H100 PCIe", 756, 51},     {"H100 NVL", 835, 60},     {"H100", 989.4, 66.9},    {"H200", 989.4, 66.9},
    {"GH200", 989.4, 66.9},     {"B200", 2250, 75},        {"A100", 312, 19.5},      {"A800", 312, 19.5},
    {"A40", 149.7, 37.4},       {"A10", 125, 31.2},        {"L40S", 362, 91.6},      {"L40", 181, 90.5},
    {"L4", 121, 30.3},          {"RTX 4090", 165.2, 82.6}, {"RTX 4080", 97.5, 48.7}, {"RTX 3090", 71, 35.6},
    {"RTX 5090", 209.5, 104.8},
};

}  // namespace

double data_sheet_flops(const char* gpu_name, MatmulMath math) {
    for (const Gpu& gpu : kGpus) {
        if (std::string_view(gpu_name).find(gpu.name) != std::string_view::npos)
            return 1e12 * (math == MatmulMath::bf16 ? gpu.bf16 : gpu.f32);
    }
    return 0;
}

double peak_flops(Device device, MatmulMath math) {
    if (device == Device::cpu) return fma_peak_flops(math);
    return data_sheet_flops(device_info(device).name.c_str(), math);
}
#endif
