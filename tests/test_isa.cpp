// Choosing an instruction set, and the messages of the shared argument checks.
#include "kernels/isa.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/check.h"
#include "kernels/fma_peak.h"
#include "kernels/peak.h"

namespace {

template <class Error, class Function>
std::string message_of(Function function) {
    try {
        function();
    } catch (const Error& error) {
        return error.what();
    }
    return "nothing was thrown";
}

TEST(Isa, NamesRoundTripAndUnknownOnesAreRefused) {
    for (const Isa isa : {Isa::plain, Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
        EXPECT_EQ(isa_from_name(isa_name(isa)), isa);
    }
    EXPECT_EQ(isa_from_name("auto"), best_isa());
    const std::string message = message_of<InputError>([] { isa_from_name("avx1024"); });
    EXPECT_NE(message.find("avx1024"), std::string::npos) << message;
    EXPECT_NE(message.find("plain, avx2"), std::string::npos) << message;
    EXPECT_NE(message.find("hint: --isa auto"), std::string::npos) << message;
}

TEST(Isa, EverySetUpToTheBestCanBeChosenAndNoneAbove) {
    const Isa before = current_isa();
    for (int i = 0; i <= static_cast<int>(Isa::avx512_bf16); ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (isa <= best_isa()) {
            set_isa(isa);
            EXPECT_EQ(current_isa(), isa);
            // The dispatched function runs: it would be killed by SIGILL if the wrong one were taken.
            EXPECT_GT(fma_peak_flops(MatmulMath::f32, 1), 0);
        } else {
            EXPECT_THROW(set_isa(isa), InputError);
        }
    }
    set_isa(before);
}

TEST(ArgumentCheck, SaysOpArgumentExpectedAndActual) {
    std::vector<float> data(12);
    const Tensor x = tensor_of(data.data(), 3, 4);
    const ArgumentCheck check{"some_op", Device::cpu};
    check.floats("x", x, {3, -1});
    check.tensor("x", x, DType::f32, {3, 4});
    const std::string message = message_of<InternalError>([&] { check.floats("x", x, {3, 5}); });
    for (const char* part : {"some_op", "x", "[3,5]", "f32[3,4]"}) {
        EXPECT_NE(message.find(part), std::string::npos) << "no " << part << " in: " << message;
    }
    EXPECT_THROW(check.tensor("x", x, DType::bf16, {3, 4}), InternalError);
    EXPECT_THROW(check.floats("x", Tensor{}, {3, 4}), InternalError);
    EXPECT_THROW(check.scratch(make_tensor(data.data(), DType::u8, 10), 11), InternalError);
    std::vector<int32_t> ids = {0, 1, 7};
    check.ids("tokens", tensor_of(ids.data(), 3), 3, 0, 8);
    EXPECT_THROW(check.ids("tokens", tensor_of(ids.data(), 3), 3, 0, 7), InternalError);
}

}  // namespace

TEST(Peak, DataSheetsAreFoundByTheDriversNames) {
    EXPECT_EQ(data_sheet_flops("NVIDIA H200", MatmulMath::bf16), 989.4e12);
    EXPECT_EQ(data_sheet_flops("NVIDIA H100 80GB HBM3", MatmulMath::bf16), 989.4e12);
    EXPECT_EQ(data_sheet_flops("NVIDIA H100 PCIe", MatmulMath::bf16), 756e12);
    EXPECT_EQ(data_sheet_flops("NVIDIA A100-SXM4-80GB", MatmulMath::f32), 19.5e12);
    EXPECT_EQ(data_sheet_flops("NVIDIA GH200 480GB", MatmulMath::bf16), 989.4e12);
    EXPECT_EQ(data_sheet_flops("NVIDIA L4", MatmulMath::bf16), 121e12);
    EXPECT_EQ(data_sheet_flops("emulated GPU (simt)", MatmulMath::bf16), 0);
    EXPECT_EQ(peak_flops(Device::simt, MatmulMath::bf16), 0);
    EXPECT_GT(peak_flops(Device::cpu, MatmulMath::f32), 0);
}
