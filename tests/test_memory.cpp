// What a process may take: limits of control groups in made-up trees of both versions, and the machine's own
// figures.
#include "core/memory.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <filesystem>
#include <functional>

#include "core/cgroup.h"
#include "core/io.h"

namespace {

constexpr int64_t kMiB = 1 << 20;

class Cgroups : public testing::Test {
protected:
    Cgroups() {
        char pattern[] = "/tmp/ingot_cgroup_XXXXXX";
        root_ = mkdtemp(pattern);
        make_directories(root_ + "/sys");
    }
    ~Cgroups() override { std::filesystem::remove_all(root_); }
    void file(const std::string& path, const std::string& content) {
        make_directories(std::filesystem::path(root_ + "/sys" + path).parent_path());
        write_file_atomic(root_ + "/sys" + path, content + "\n");
    }
    void membership(const std::string& lines) { write_file_atomic(root_ + "/self", lines); }
    void memory_2(const std::string& group, const std::string& limit, int64_t usage,
                  const std::string& stat = "anon 1") {
        file(group + "/memory.max", limit);
        file(group + "/memory.current", std::to_string(usage));
        file(group + "/memory.stat", stat);
    }
    void memory_1(const std::string& group, int64_t limit, int64_t usage, const std::string& stat) {
        file("/memory" + group + "/memory.limit_in_bytes", std::to_string(limit));
        file("/memory" + group + "/memory.usage_in_bytes", std::to_string(usage));
        file("/memory" + group + "/memory.stat", stat);
    }
    CgroupFiles files() const { return {.membership = root_ + "/self", .mount = root_ + "/sys"}; }
    int64_t memory() const { return cgroup_memory_bytes(files()); }
    int cores() const { return cgroup_cores(files()); }
    std::string root_;
};

}  // namespace

TEST_F(Cgroups, NoneIsNoLimit) {
    EXPECT_EQ(memory(), INT64_MAX);
    EXPECT_EQ(cores(), INT_MAX);
    membership("0::/\nnonsense\n");
    EXPECT_EQ(memory(), INT64_MAX);
    memory_2("", "max", 100 * kMiB);
    file("/cpu.max", "max 100000");
    EXPECT_EQ(memory(), INT64_MAX);
    EXPECT_EQ(cores(), INT_MAX);
}

TEST_F(Cgroups, TheTightestOfOwnGroupAndAncestorsHolds) {
    membership("0::/user.slice/job/step\n");
    memory_2("/user.slice/job/step", "max", 10 * kMiB);
    memory_2("/user.slice/job", std::to_string(200 * kMiB), 50 * kMiB);
    memory_2("/user.slice", std::to_string(1000 * kMiB), 900 * kMiB);
    EXPECT_EQ(memory(), 100 * kMiB) << "the topmost";
    memory_2("/user.slice/job/step", std::to_string(64 * kMiB), 10 * kMiB);
    EXPECT_EQ(memory(), 54 * kMiB) << "its own";
    memory_2("/user.slice/job", std::to_string(80 * kMiB), 50 * kMiB);
    EXPECT_EQ(memory(), 30 * kMiB) << "one between";
    memory_2("/user.slice/other", std::to_string(kMiB), 0);
    EXPECT_EQ(memory(), 30 * kMiB) << "a group that is not above us";
    memory_2("", std::to_string(5 * kMiB), 50 * kMiB);
    EXPECT_EQ(memory(), 0) << "never negative";
}

TEST_F(Cgroups, PageCacheIsFree) {
    membership("0::/job\n");
    memory_2("/job", std::to_string(200 * kMiB), 190 * kMiB,
             "anon 1\ninactive_file 104857600\nactive_file 52428800\ninactive_anon 7");
    EXPECT_EQ(memory(), 160 * kMiB);
    // A figure that moved between two reads must not give more than the limit.
    memory_2("/job", std::to_string(200 * kMiB), 10 * kMiB, "inactive_file 104857600");
    EXPECT_EQ(memory(), 200 * kMiB);
}

TEST_F(Cgroups, VersionOneAndBothAtOnce) {
    membership("5:cpu,cpuacct:/batch\n4:memory:/batch/job\n3:memory_other:/x\n0::/init.scope\n");
    memory_1("/batch/job", 300 * kMiB, 250 * kMiB,
             "inactive_file 1\ntotal_inactive_file 20971520\ntotal_active_file 10485760");
    EXPECT_EQ(memory(), 80 * kMiB);
    memory_1("/batch", INT64_MAX - 4095, 250 * kMiB, "");  // what version 1 says for no limit
    EXPECT_EQ(memory(), 80 * kMiB);
    memory_2("/init.scope", std::to_string(70 * kMiB), 0);
    EXPECT_EQ(memory(), 70 * kMiB);
    file("/cpu/batch/cpu.cfs_quota_us", "250000");
    file("/cpu/batch/cpu.cfs_period_us", "100000");
    EXPECT_EQ(cores(), 3);
    file("/cpu/batch/cpu.cfs_quota_us", "-1");
    EXPECT_EQ(cores(), INT_MAX);
}

// The path is the host's, the tree is the container's own: only its root is there.
TEST_F(Cgroups, AContainerThatSeesItsHostsPath) {
    membership("4:memory:/docker/abc\n0::/../../docker/abc\n");
    memory_1("", 100 * kMiB, 40 * kMiB, "total_inactive_file 10485760");
    EXPECT_EQ(memory(), 70 * kMiB);
    memory_2("", std::to_string(50 * kMiB), 0);
    EXPECT_EQ(memory(), 50 * kMiB);
}

TEST_F(Cgroups, CoresOfVersionTwo) {
    membership("0::/a/b\n");
    file("/a/cpu.max", "400000 100000");
    EXPECT_EQ(cores(), 4);
    file("/a/b/cpu.max", "150000 100000");
    EXPECT_EQ(cores(), 2) << "rounded up";
    file("/cpu.max", "1000 100000");
    EXPECT_EQ(cores(), 1);
    file("/a/b/cpu.max", "garbage");
    EXPECT_EQ(cores(), 1);
}

namespace {

// How much `body` raises the peak of a child process that has only what was resident here.
int64_t peak_growth(const std::function<void()>& body) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        const int64_t before = peak_rss_bytes();
        body();
        const int64_t growth = peak_rss_bytes() - before;
        _exit(write(ends[1], &growth, sizeof growth) == sizeof growth ? 0 : 1);
    }
    int64_t growth = -1;
    EXPECT_EQ(read(ends[0], &growth, sizeof growth), static_cast<ssize_t>(sizeof growth));
    close(ends[0]);
    close(ends[1]);
    waitpid(child, nullptr, 0);
    return growth;
}

}  // namespace

TEST(Memory, AvailableIsSane) {
    EXPECT_GT(available_memory_bytes(), 16 * kMiB);
    EXPECT_LT(available_memory_bytes(), int64_t{1} << 50);
}

TEST(Memory, PeakGrowsWithWhatIsTouched) {
    EXPECT_GT(peak_rss_bytes(), kMiB);
    const int64_t growth = peak_growth([] {
        std::string block(64 << 20, 'x');
        asm volatile("" : : "r"(block.data()) : "memory");
    });
    EXPECT_GE(growth, 60 * kMiB);
    EXPECT_LE(growth, 160 * kMiB);
}

TEST_F(Cgroups, HashingAFileDoesNotTakeItsSize) {
    file("/large", "");
    std::filesystem::resize_file(root_ + "/sys/large", 128 * kMiB);
    std::string hash;
    EXPECT_LE(peak_growth([&] { hash = sha256_file(root_ + "/sys/large"); }), 32 * kMiB);
}
