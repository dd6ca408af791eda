// The arithmetic limit that model FLOP utilisation is a share of.
#pragma once
#include "core/device.h"
#include "kernels/matmul.h"

// FLOP/s. CPU: measured (kernels/fma_peak.h). GPU: the data sheet's dense rate with f32 sums, bf16 tensor
// cores or f32 FMA units; 0 for a GPU that is not listed, and for the emulator.
double peak_flops(Device device, MatmulMath math);

// The data sheet's figure by the name that the driver gives; 0 when it is not listed.
double data_sheet_flops(const char* gpu_name, MatmulMath math);
