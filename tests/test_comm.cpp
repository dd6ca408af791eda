// Communication between ranks. The tests of InRanks hold for any number of them: they run here as one, and
// once more as 2, 3 and 4 ranks of mpirun.
#include "core/comm.h"

#include <cstdlib>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "tests/run_ranks.h"

namespace {

Comm& comm() {
    static const std::unique_ptr<Comm> of_job = make_comm();
    return *of_job;
}

// Element i of rank r's; sums of these over ranks are exact.
float value(int rank, int64_t i) { return static_cast<float>(rank * 1000 + i % 991 + 1); }
std::vector<float> values_of(int rank, int64_t size) {
    std::vector<float> values(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) values[static_cast<size_t>(i)] = value(rank, i);
    return values;
}
Tensor tensor_of_all(std::vector<float>& values) {
    return tensor_of(values.data(), static_cast<int64_t>(values.size()));
}
// Less than a block for each, no multiple of anything, and several parts of a sum (4 MiB) for each of four.
constexpr int64_t kSizes[] = {0, 1, 63, 64, 129, 1000, 5'000'003};

}  // namespace

TEST(SplitOfRanks, CoversEverythingOnceAndEvenly) {
    for (int64_t size : {0, 1, 64, 65, 1000, 123'456'789}) {
        for (int ranks : {1, 2, 3, 7, 64}) {
            const Split split{size, ranks};
            EXPECT_EQ(split.begin(0), 0);
            EXPECT_EQ(split.begin(ranks), size);
            for (int r = 0; r < ranks; ++r) {
                EXPECT_GE(split.count(r), 0);
                EXPECT_LE(split.count(r), size / ranks + Split::kBlock) << size << " by " << ranks;
                EXPECT_TRUE(split.begin(r) % Split::kBlock == 0 || split.begin(r) == size) << size;
            }
        }
    }
}

TEST(InRanks, TheLauncherSaysHowMany) {
    const char* launched = std::getenv("OMPI_COMM_WORLD_SIZE");
    if (launched == nullptr) launched = std::getenv("PMI_SIZE");  // MPICH
    EXPECT_EQ(comm().size(), launched ? std::atoi(launched) : 1);
    EXPECT_GE(comm().rank(), 0);
    EXPECT_LT(comm().rank(), comm().size());
}

TEST(InRanks, ReduceScatterSumsOwnRangesOnly) {
    for (int64_t size : kSizes) {
        const Split split{size, comm().size()};
        std::vector<float> full = values_of(comm().rank(), size);
        comm().reduce_scatter_sum(tensor_of_all(full), split);
        const int64_t begin = split.begin(comm().rank()), end = split.begin(comm().rank() + 1);
        for (int64_t i = 0; i < size; ++i) {
            float expected = value(comm().rank(), i);
            if (i >= begin && i < end) {
                expected = 0;
                for (int r = 0; r < comm().size(); ++r) expected += value(r, i);
            }
            ASSERT_EQ(full[static_cast<size_t>(i)], expected) << "element " << i << " of " << size;
        }
    }
}

// (big + small) - big depends on the order: it must be that of ranks on every rank, every time.
TEST(InRanks, SumsAreInTheOrderOfRanks) {
    const auto term = [](int rank) {
        return rank % 2 == 0 ? 1e8f + static_cast<float>(rank) : -1e8f + 0.25f;
    };
    float expected = term(0);
    for (int r = 1; r < comm().size(); ++r) expected += term(r);
    for (int repeat = 0; repeat < 20; ++repeat) {
        std::vector<float> one(100, term(comm().rank())), two = one;
        comm().all_reduce_sum(tensor_of_all(one));
        for (float x : one) ASSERT_EQ(x, expected);
        const Split split{100, comm().size()};
        comm().reduce_scatter_sum(tensor_of_all(two), split);
        for (int64_t i = 0; i < split.count(comm().rank()); ++i)
            ASSERT_EQ(two[static_cast<size_t>(split.begin(comm().rank()) + i)], expected);
    }
}

TEST(InRanks, AllReduceOfDoubles) {
    double x[3] = {1.0 + comm().rank(), 0x1p-40 * comm().rank(), -2};
    comm().all_reduce_sum(tensor_of(x, 3));
    const int n = comm().size();
    EXPECT_EQ(x[0], n + n * (n - 1) / 2);
    EXPECT_EQ(x[1], 0x1p-40 * (n * (n - 1) / 2));
    EXPECT_EQ(x[2], -2 * n);
}

TEST(InRanks, AllGather) {
    for (int64_t size : kSizes) {
        const Split split{size, comm().size()};
        const int64_t begin = split.begin(comm().rank()), mine = split.count(comm().rank());
        std::vector<float> full(static_cast<size_t>(size), -1);
        for (int64_t i = begin; i < begin + mine; ++i) full[static_cast<size_t>(i)] = value(comm().rank(), i);
        comm().all_gather(tensor_of_all(full), split);
        for (int r = 0; r < comm().size(); ++r) {
            for (int64_t i = split.begin(r); i < split.begin(r + 1); ++i)
                ASSERT_EQ(full[static_cast<size_t>(i)], value(r, i)) << "element " << i << " of " << size;
        }
    }
}

// Uneven numbers of arrays, and ranges so large that they come in several chunks.
TEST(InRanks, ExchangeBringsAllArraysToTheOwnerOfARange) {
    std::vector<int> num_arrays;
    for (int r = 0; r < comm().size(); ++r) num_arrays.push_back(r % 3 == 1 ? 2 : r % 3 == 2 ? 0 : 1);
    const auto element = [](int rank, int array, int64_t i) {
        return value(rank, i) + 7.0f * static_cast<float>(array);
    };
    for (const int64_t size : {int64_t{0}, int64_t{63}, int64_t{1000}, int64_t{2'500'000} * comm().size()}) {
        const Split split{size, comm().size()};
        const int rank = comm().rank();
        std::vector<std::vector<float>> arrays;
        std::vector<Tensor> tensors;
        for (int k = 0; k < num_arrays[static_cast<size_t>(rank)]; ++k) {
            arrays.emplace_back(static_cast<size_t>(size));
            for (int64_t i = 0; i < size; ++i) arrays.back()[static_cast<size_t>(i)] = element(rank, k, i);
        }
        for (std::vector<float>& array : arrays) tensors.push_back(tensor_of_all(array));
        int64_t next = split.begin(rank), wrong = 0;
        comm().exchange(tensors, num_arrays, split,
                        [&](int64_t begin, int64_t count, std::span<float* const> pieces) {
                            ASSERT_EQ(begin, next) << "one chunk after another";
                            next += count;
                            size_t piece = 0;
                            for (int r = 0; r < comm().size(); ++r) {
                                for (int k = 0; k < num_arrays[static_cast<size_t>(r)]; ++k, ++piece) {
                                    for (int64_t i = 0; i < count; ++i) {
                                        wrong += pieces[piece][i] != element(r, k, begin + i);
                                        pieces[piece][i] = -1;  // may be overwritten
                                    }
                                }
                            }
                            EXPECT_EQ(piece, pieces.size());
                        });
        EXPECT_EQ(next, split.begin(rank + 1));
        EXPECT_EQ(wrong, 0);
        for (int k = 0; k < num_arrays[static_cast<size_t>(rank)]; ++k) {
            for (int64_t i = 0; i < size; ++i) {
                const bool own = i >= split.begin(rank) && i < split.begin(rank + 1);
                ASSERT_EQ(arrays[static_cast<size_t>(k)][static_cast<size_t>(i)],
                          own ? -1 : element(rank, k, i));
            }
        }
    }
}

TEST(InRanks, TextsAndWhatMustBeTheSame) {
    for (int root = 0; root < comm().size(); ++root) {
        EXPECT_EQ(broadcast_text(comm(), std::string(static_cast<size_t>(comm().rank()), 'x'), root),
                  std::string(static_cast<size_t>(root), 'x'));
    }
    require_same(comm(), "the flags", "lr = 1\nsteps = 2", "");
    if (comm().size() == 1) return;
    const bool other = comm().rank() == comm().size() - 1;
    try {
        require_same(comm(), "the flags", other ? "lr = 1\nsteps = 3" : "lr = 1\nsteps = 2", "mend it");
        ADD_FAILURE() << "not refused on rank " << comm().rank();
    } catch (const InputError& error) {
        const std::string last = cat({"the flags differs between ranks: rank ", comm().size() - 1, " on "});
        EXPECT_EQ(std::string(error.what()).find(last), 0u) << error.what();
        EXPECT_NE(std::string(error.what()).find("expected steps = 2 as rank 0"), std::string::npos)
            << error.what();
        EXPECT_NE(std::string(error.what()).find("got steps = 3  hint: mend it"), std::string::npos)
            << error.what();
    }
    EXPECT_EQ(comm().ranks_here(), comm().size());
}

TEST(InRanks, BytesOnTheWireFollowTheFormulas) {
    constexpr int64_t kSize = 64 * 12;  // divides by 1, 2, 3 and 4
    const int64_t ranks = comm().size(), share = kSize / ranks * 4;
    std::vector<float> full(kSize);
    const Split split{kSize, comm().size()};
    const auto sent_by = [](const auto& collective) {
        const int64_t before = comm().bytes_sent();
        collective();
        return comm().bytes_sent() - before;
    };
    EXPECT_EQ(sent_by([&] { comm().reduce_scatter_sum(tensor_of_all(full), split); }), (ranks - 1) * share);
    EXPECT_EQ(sent_by([&] { comm().all_gather(tensor_of_all(full), split); }), (ranks - 1) * share);
    EXPECT_EQ(sent_by([&] { comm().all_reduce_sum(tensor_of_all(full)); }), (ranks - 1) * kSize * 4);
}

TEST(InRanks, BroadcastFromEveryRoot) {
    for (int root = 0; root < comm().size(); ++root) {
        std::vector<float> t = values_of(comm().rank(), 777);
        comm().broadcast(tensor_of_all(t), root);
        EXPECT_EQ(t, values_of(root, 777));
    }
    comm().barrier();
}

TEST(InRanks, WrongArgumentsAreFaultsOfTheProgram) {
    std::vector<float> t(10);
    EXPECT_THROW(comm().all_gather(tensor_of_all(t), {9, comm().size()}), InternalError);
    EXPECT_THROW(comm().all_gather(tensor_of_all(t), {10, comm().size() + 1}), InternalError);
    EXPECT_THROW(comm().reduce_scatter_sum(tensor_of_all(t), {9, comm().size()}), InternalError);
    const Tensor whole = tensor_of_all(t);
    const std::vector<int> one_each(static_cast<size_t>(comm().size()), 1), none;
    const auto take = [](int64_t, int64_t, std::span<float* const>) {};
    EXPECT_THROW(comm().exchange({&whole, 1}, one_each, {9, comm().size()}, take), InternalError);
    EXPECT_THROW(comm().exchange({&whole, 1}, none, {10, comm().size()}, take), InternalError);
    EXPECT_THROW(comm().exchange({}, one_each, {10, comm().size()}, take), InternalError);
    EXPECT_THROW(comm().broadcast(tensor_of_all(t), comm().size()), InternalError);
    int32_t ids[2] = {1, 2};
    EXPECT_THROW(comm().all_reduce_sum(tensor_of(ids, 2)), InternalError);
    EXPECT_THROW(comm().reduce_scatter_sum(tensor_of(ids, 2), {2, comm().size()}), InternalError);
}

// A launcher of another MPI starts ranks of which each is alone.
TEST(Comm, ALauncherThatThisMpiDoesNotKnowIsRefused) {
    if (mpirun_path().empty()) GTEST_SKIP() << "no mpirun";
    RunOptions options;
    options.variable = "SLURM_STEP_NUM_TASKS=4";
    const Outcome outcome =
        run_program("tests/test_comm", {"--gtest_filter=InRanks.AllReduceOfDoubles"}, options);
    EXPECT_NE(outcome.exit_code, 0);
    EXPECT_NE(outcome.out.find("does not know the launcher: expected 4 ranks, got 1"), std::string::npos)
        << outcome.out << outcome.err;
}

// For Comm.AbortEndsAllRanks, which starts several ranks of them. All ranks but the last go on to wait for
// it; what ends them is its call.
TEST(LastRank, DISABLED_Aborts) {
    if (comm().rank() == comm().size() - 1) comm().abort_all("error: loss is NaN", 3);
    for (;;) comm().barrier();
}
TEST(EveryRank, DISABLED_Aborts) { comm().abort_all("error: unknown flag", 2); }

TEST(Comm, RanksOfMpirun) {
    if (mpirun_path().empty()) GTEST_SKIP() << "no mpirun";
    for (int ranks : {2, 3, 4}) {
        const Outcome outcome = run_ranks(ranks, "tests/test_comm", {"--gtest_filter=InRanks.*"});
        EXPECT_EQ(outcome.exit_code, 0) << ranks << " ranks\n" << outcome.out << outcome.err;
        size_t passed = 0;
        for (size_t at = 0; (at = outcome.out.find("[  PASSED  ] 10 tests", at)) != std::string::npos; ++at) {
            ++passed;
        }
        EXPECT_EQ(passed, static_cast<size_t>(ranks)) << outcome.out;
    }
}

TEST(Comm, AbortEndsAllRanks) {
    if (mpirun_path().empty()) GTEST_SKIP() << "no mpirun";
    for (const auto& [filter, message, code] :
         {std::tuple{"LastRank.*", "error: loss is NaN  (rank 2 on ", 3},
          {"EveryRank.*", "error: unknown flag\n", 2}}) {
        const Outcome outcome =
            run_ranks(3, "tests/test_comm",
                      {std::string("--gtest_filter=") + filter, "--gtest_also_run_disabled_tests"});
        EXPECT_EQ(outcome.exit_code, code) << outcome.err;
        const size_t first = outcome.err.find(message);
        ASSERT_NE(first, std::string::npos) << outcome.err;
        EXPECT_EQ(outcome.err.find("error: ", first + 1), std::string::npos) << "one line: " << outcome.err;
    }
}

TEST(CommDeathTest, AbortEndsTheProcess) {
    EXPECT_EXIT(make_self_comm()->abort_all("error: loss is NaN", 3), testing::ExitedWithCode(3),
                "^error: loss is NaN\n$");
}
