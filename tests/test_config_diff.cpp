// The comparison that keeps a run directory from being continued with other settings.
#include "core/config_diff.h"

#include <gtest/gtest.h>

namespace {

const char* const kStored = "lr = 0.001\nseed = 42\nthreads = 2\n";

TEST(ConfigDiff, EqualAndFreeOptionsPass) {
    EXPECT_FALSE(first_difference(kStored, kStored, {}));
    EXPECT_FALSE(first_difference(kStored, "lr = 0.001\nseed = 42\nthreads = 8\n", {"threads"}));
    EXPECT_FALSE(first_difference(kStored, "threads = 2\nseed = 42\nlr = 0.001\n", {}))
        << "order does not matter";
}

TEST(ConfigDiff, NamesTheFirstDifference) {
    const auto changed = first_difference(kStored, "lr = 0.002\nseed = 43\nthreads = 2\n", {});
    ASSERT_TRUE(changed);
    EXPECT_EQ(changed->name, "lr");
    EXPECT_EQ(changed->stored, "0.001");
    EXPECT_EQ(changed->given, "0.002");
    const auto gone = first_difference(kStored, "lr = 0.001\nthreads = 2\n", {});
    ASSERT_TRUE(gone);
    EXPECT_EQ(gone->name, "seed");
    EXPECT_EQ(gone->given, "(absent)");
    const auto added = first_difference(kStored, "lr = 0.001\nseed = 42\nthreads = 2\neps = 1\n", {});
    ASSERT_TRUE(added);
    EXPECT_EQ(added->name, "eps");
    EXPECT_EQ(added->stored, "(absent)");
}

}  // namespace
