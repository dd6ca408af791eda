// One writer a directory: who is refused, what is left behind, and whose leftovers are nobody's.
#include "core/lock.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "core/config_diff.h"
#include "core/error.h"
#include "core/io.h"

namespace {

class Lock : public testing::Test {
protected:
    void SetUp() override {
        std::string pattern = (std::filesystem::temp_directory_path() / "ingot-lock-XXXXXX").string();
        root_ = mkdtemp(pattern.data());
    }
    void TearDown() override { std::filesystem::remove_all(root_); }
    static std::string complaint(const std::string& directory) {
        try {
            DirectoryLock lock(directory);
        } catch (const InputError& error) {
            return error.what();
        }
        return "(locked)";
    }
    std::string root_;
};

TEST_F(Lock, ExcludesOthersAsLongAsItLives) {
    const std::string directory = root_ + "/run";
    std::optional<DirectoryLock> lock(directory);
    const std::string line = complaint(directory);
    for (const char* part : {"another process", directory.c_str(), "hint:"})
        EXPECT_NE(line.find(part), std::string::npos) << line;
    const pid_t other = fork();
    if (other == 0) _exit(complaint(directory) == line ? 0 : 1);
    int status = 0;
    ASSERT_EQ(waitpid(other, &status, 0), other);
    EXPECT_EQ(status, 0) << "another process is refused in the same words";
    lock.reset();
    EXPECT_EQ(complaint(directory), "(locked)");
}

TEST_F(Lock, TakesAwayOnlyWhatItMade) {
    const std::string directory = root_ + "/run";
    { DirectoryLock lock(directory); }
    EXPECT_FALSE(path_exists(directory));
    {
        DirectoryLock lock(directory);
        write_file_atomic(directory + "/kept", "x");
    }
    EXPECT_EQ(list_directory(directory), (std::vector<std::string>{".lock", "kept"}));
    std::filesystem::create_directory(root_ + "/there");
    { DirectoryLock lock(root_ + "/there"); }
    EXPECT_TRUE(is_directory(root_ + "/there"));
    check_run_directory(root_ + "/there", "lr = 1\n", {});  // a lock alone is nobody's run
}

TEST_F(Lock, GoesWithItsProcess) {
    const std::string directory = root_ + "/run";
    const pid_t holder = fork();
    if (holder == 0) {
        new DirectoryLock(directory);
        _exit(0);  // as if killed: no destructor
    }
    int status = 0;
    ASSERT_EQ(waitpid(holder, &status, 0), holder);
    EXPECT_TRUE(path_exists(directory + "/.lock"));
    EXPECT_EQ(complaint(directory), "(locked)");
}

TEST_F(Lock, APlaceThatCannotBeWrittenIsNamed) {
    write_file_atomic(root_ + "/file", "x");
    EXPECT_NE(complaint(root_ + "/file/run").find(root_ + "/file/run"), std::string::npos);
}

TEST(Temporary, OnlyTheDeadAreDead) {
    EXPECT_FALSE(is_dead_temporary(temporary_name("/a/step_1"))) << "our own";
    EXPECT_FALSE(is_dead_temporary("step_1.tmp-" + std::to_string(getppid())));
    EXPECT_FALSE(is_dead_temporary("step_1.tmp-999999999-elsewhere")) << "another host's";
    EXPECT_TRUE(is_dead_temporary("step_1.tmp-999999999"));
    EXPECT_FALSE(is_dead_temporary("step_1"));
    EXPECT_FALSE(is_dead_temporary("step_1.tmp-notes"));
}

}  // namespace
