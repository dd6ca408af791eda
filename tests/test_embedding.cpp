// Embedding: forward is copying (exact) or one addition; backward sums each row's tokens in order of n.
#include "kernels/embedding.h"

#include "tests/on_device.h"

namespace {

struct Shape {
    int64_t tokens, channels, vocab, max_position;
};
constexpr Shape kShapes[] = {{1, 1, 1, 1}, {5, 7, 3, 4}, {64, 33, 101, 16}, {300, 768, 50, 9}, {0, 8, 4, 4}};
// On a GPU: sorting in several blocks and in one, two and three passes, rows of one token and of many, as
// many channels as a warp has, and more than a block has threads.
constexpr Shape kGpuShapes[] = {{1, 1, 1, 1}, {5, 7, 3, 4},    {64, 33, 101, 16},  {100, 264, 9, 5},
                                {0, 8, 4, 4}, {64, 8, 1, 2},   {4500, 8, 700, 40}, {90, 1, 300000, 600},
                                {3, 0, 5, 5}, {7, 2568, 4, 3}, {2049, 2, 512, 513}};

Guarded<int32_t> guarded_ids(const std::vector<int32_t>& ids) {
    return Guarded<int32_t>(Values(ids.begin(), ids.end()));
}

// On a GPU odd_ones says which tensors are misaligned (tests/on_device.h).
template <class T>
void check_shape(Shape s, bool with_positions, Device device, uint32_t odd_ones = 0) {
    SCOPED_TRACE(cat({device_name(device), " ", dtype_name(dtype_of<T>()), " ", s.tokens, " x ", s.channels,
                      " of ", s.vocab, with_positions ? " with wpe, odd " : ", odd ", odd_ones}));
    const int64_t offset = device == Device::cpu;
    const auto tokens = random_ids(s.tokens, 0, static_cast<int32_t>(s.vocab), 1);
    const auto positions = random_ids(s.tokens, 0, static_cast<int32_t>(s.max_position), 2);
    const Guarded<int32_t> token_data = guarded_ids(tokens), position_data = guarded_ids(positions);
    OnDevice on(device, odd_ones);
    const auto matrix = [&](const auto& g, int64_t rows) { return on(g.tensor(rows, s.channels)); };
    const auto of_positions = [&](Tensor t) { return with_positions ? t : Tensor{}; };

    Guarded<T> wte(normal_values(s.vocab * s.channels, 3), offset),
        wpe(normal_values(s.max_position * s.channels, 4));
    Guarded<T> out(s.tokens * s.channels);
    embedding_forward(matrix(out, s.tokens), matrix(wte, s.vocab), of_positions(matrix(wpe, s.max_position)),
                      on(token_data.tensor()), of_positions(on(position_data.tensor())));

    const Values dout = representable<T>(normal_values(s.tokens * s.channels, 5));
    const Values dwte0 = normal_values(s.vocab * s.channels, 6),
                 dwpe0 = normal_values(s.max_position * s.channels, 7);
    Guarded<T> dout_data(dout, 3 * offset);
    Guarded<float> dwte(dwte0), dwpe(dwpe0), expected_dwte(dwte0), expected_dwpe(dwpe0);
    embedding_backward(matrix(dwte, s.vocab), of_positions(matrix(dwpe, s.max_position)),
                       matrix(dout_data, s.tokens), on(token_data.tensor()),
                       of_positions(on(position_data.tensor())));
    on.fetch();

    for (int64_t n = 0; n < s.tokens; ++n) {
        for (int64_t c = 0; c < s.channels; ++c) {
            const int64_t te = tokens[static_cast<size_t>(n)] * s.channels + c;
            const int64_t pe = positions[static_cast<size_t>(n)] * s.channels + c;
            const float sum = to_float(wte[te]) + (with_positions ? to_float(wpe[pe]) : 0.0f);
            ASSERT_EQ(to_double(out[n * s.channels + c]), to_double(rounded<T>(sum)));
            expected_dwte[te] += to_float(dout_data[n * s.channels + c]);
            if (with_positions) expected_dwpe[pe] += to_float(dout_data[n * s.channels + c]);
        }
    }
    // The order of the sum is part of the contract, so the loop above gives the same bits.
    EXPECT_TRUE(dwte.bytes() == expected_dwte.bytes());
    EXPECT_TRUE(dwpe.bytes() == expected_dwpe.bytes());
}

}  // namespace

TEST(Embedding, CopiesAddsAndSumsInOrder) {
    for_each_isa([] {
        for (Shape s : kShapes) {
            for (bool with_positions : {false, true}) {
                check_shape<float>(s, with_positions, Device::cpu);
                check_shape<bf16>(s, with_positions, Device::cpu);
            }
        }
    });
}

TEST(Embedding, CopiesAddsAndSumsInOrderOnGpus) {
    for (Device device : gpus()) {
        for (Shape s : kGpuShapes) {
            for (bool with_positions : {false, true}) {
                for (uint32_t odd_ones : misalignments(0)) {
                    check_shape<float>(s, with_positions, device, odd_ones);
                    check_shape<bf16>(s, with_positions, device, odd_ones);
                }
            }
        }
        for (uint32_t odd_ones : misalignments(9)) {
            check_shape<float>({20, 16, 9, 5}, true, device, odd_ones);
            check_shape<bf16>({20, 16, 9, 5}, true, device, odd_ones);
        }
    }
}

TEST(Embedding, BackwardIsTheGradientOfForward) {
    const std::vector<int32_t> tokens = {2, 0, 2, 1}, positions = {0, 1, 1, 0};
    const Values dout = representable<float>(normal_values(4 * 3, 1));
    const auto loss = [&](const Values& wte, const Values& wpe) {
        double sum = 0;
        for (size_t i = 0; i < 12; ++i) {
            const size_t n = i / 3, c = i % 3;
            sum += dout[i] * (wte[static_cast<size_t>(tokens[n]) * 3 + c] +
                              wpe[static_cast<size_t>(positions[n]) * 3 + c]);
        }
        return sum;
    };
    const Values wte = normal_values(9, 2), wpe = normal_values(6, 3);
    Guarded<float> dwte(Values(9, 0.0)), dwpe(Values(6, 0.0)), dout_data(dout);
    embedding_backward(dwte.tensor(3, 3), dwpe.tensor(2, 3), dout_data.tensor(4, 3),
                       guarded_ids(tokens).tensor(), guarded_ids(positions).tensor());
    expect_close(dwte.values(), numeric_gradient([&](const Values& v) { return loss(v, wpe); }, wte),
                 kTolerance<float>, "dwte");
    expect_close(dwpe.values(), numeric_gradient([&](const Values& v) { return loss(wte, v); }, wpe),
                 kTolerance<float>, "dwpe");
}

TEST(Embedding, SameBitsForAnyNumberOfThreads) {
    const int64_t tokens = 4000, channels = 24;
    const Guarded<int32_t> ids = guarded_ids(random_ids(tokens, 0, 40, 1));
    Guarded<bf16> dout(normal_values(tokens * channels, 2));
    expect_same_bits_for_any_threads([&] {
        Guarded<float> dwte(Values(40 * channels, 0.5));
        embedding_backward(dwte.tensor(40, channels), {}, dout.tensor(tokens, channels), ids.tensor(), {});
        return dwte.bytes();
    });
}

TEST(Embedding, SameBitsInAnyOrderOfAGpusThreads) {
    const int64_t tokens = 2100, channels = 8;
    const Guarded<int32_t> ids = guarded_ids(random_ids(tokens, 0, 600, 1));
    Guarded<bf16> dout(normal_values(tokens * channels, 2));
    expect_same_bits_on_gpus([&](Device device) {
        Guarded<float> dwte(Values(600 * channels, 0.5));
        OnDevice on(device);
        embedding_backward(on(dwte.tensor(600, channels)), {}, on(dout.tensor(tokens, channels)),
                           on(ids.tensor()), {});
        on.fetch();
        return dwte.bytes();
    });
}

TEST(Embedding, NamesTheWrongArgument) {
    Guarded<float> out(6), wte(Values(9, 1.0)), wpe(Values(8, 1.0));
    const auto run = [&](const std::vector<int32_t>& ids, Tensor positions_table) {
        const Guarded<int32_t> id_data = guarded_ids(ids);
        return check_failure([&] {
            embedding_forward(out.tensor(2, 3), wte.tensor(3, 3), positions_table, id_data.tensor(),
                              id_data.tensor());
        });
    };
    EXPECT_EQ(run({0, 2}, {}), "");
    expect_mentions(run({0, 3}, {}), {"embedding_forward", "argument tokens", "[0,3)", "3 at 1"});
    expect_mentions(run({-1, 0}, {}), {"argument tokens", "-1 at 0"});
    expect_mentions(run({0, 2}, wpe.tensor(2, 4)), {"argument wpe", "f32[*,3]", "f32[2,4]"});
}
