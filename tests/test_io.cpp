// Files: complete or absent, whatever happens in between; clear complaints; hashes against published values.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "core/error.h"
#include "core/io.h"

namespace {

class Files : public testing::Test {
protected:
    Files() {
        char pattern[] = "/tmp/ingot_io_XXXXXX";
        directory_ = mkdtemp(pattern);
    }
    ~Files() override { std::filesystem::remove_all(directory_); }
    std::string path(const std::string& name) const { return directory_ + "/" + name; }
    // What `body` complains about, with this test's directory written as DIR.
    std::string complaint(const std::function<void()>& body) const {
        try {
            body();
        } catch (const InputError& error) {
            std::string text = error.what();
            for (size_t at; (at = text.find(directory_)) != std::string::npos;)
                text.replace(at, directory_.size(), "DIR");
            return text;
        }
        return "(accepted)";
    }
    std::string directory_;
};

using Names = std::vector<std::string>;

// Runs `body` in a child process and returns its wait status.
int in_child(const std::function<void()>& body) {
    const pid_t child = fork();
    if (child == 0) {
        body();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

}  // namespace

TEST_F(Files, AtomicFileAppearsAtCommit) {
    const std::string big((3 << 20) + 7, 'x');
    {
        AtomicFile file(path("a"));
        file.write("head....");
        file.write(big);
        file.write("tail");
        EXPECT_EQ(file.bytes_written(), static_cast<int64_t>(8 + big.size() + 4));
        file.write_at(4, "1234", 4);
        file.write("more");
        EXPECT_FALSE(path_exists(path("a")));
        EXPECT_EQ(list_directory(directory_).size(), 1u);
        EXPECT_TRUE(list_directory(directory_)[0].starts_with(".a.tmp-" + std::to_string(getpid())));
        file.commit();
        EXPECT_THROW(file.commit(), InternalError);
        EXPECT_THROW(file.write("x"), InternalError);
    }
    EXPECT_EQ(list_directory(directory_), Names{"a"});
    EXPECT_EQ(read_file(path("a")), "head1234" + big + "tailmore");
    EXPECT_EQ(MappedFile(path("a")).text(), "head1234" + big + "tailmore");
    EXPECT_EQ(file_bytes(path("a")), static_cast<int64_t>(16 + big.size()));
}

TEST_F(Files, AtomicFileClosedEarlyIsStillInvisible) {
    {
        AtomicFile file(path("a"));
        file.write("content");
        file.close();
        EXPECT_FALSE(path_exists(path("a")));
        EXPECT_THROW(file.write("more"), InternalError);
        EXPECT_THROW(file.close(), InternalError);
        file.commit();
        EXPECT_EQ(read_file(path("a")), "content");
        EXPECT_THROW(file.commit(), InternalError);
    }
    EXPECT_EQ(read_file(path("a")), "content") << "the destructor leaves what was committed";
    {
        AtomicFile file(path("b"));
        file.write("abandoned");
        file.close();
    }
    EXPECT_EQ(list_directory(directory_), Names{"a"});
}

TEST_F(Files, AtomicFileLeavesTheOldOneUntilCommit) {
    write_file_atomic(path("a"), "old");
    {
        AtomicFile file(path("a"));
        file.write("new");
        EXPECT_THROW(file.write_at(2, "xx", 2), InternalError);
    }
    EXPECT_EQ(read_file(path("a")), "old");
    EXPECT_EQ(list_directory(directory_), Names{"a"});
    write_file_atomic(path("a"), "");
    EXPECT_EQ(read_file(path("a")), "");
    EXPECT_EQ(MappedFile(path("a")).bytes(), 0);
}

TEST_F(Files, KilledWriterLeavesTheOldFile) {
    write_file_atomic(path("a"), "old");
    const int status = in_child([&] {
        AtomicFile file(path("a"));
        file.write(std::string(2 << 20, 'n'));
        raise(SIGKILL);
    });
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(read_file(path("a")), "old");
}

TEST_F(Files, FullDiskNamesPathBytesAndReason) {
    // The kernel's always-full device stands for a full disk: the temporary's name is made to lead there.
    char host[256] = {};
    gethostname(host, sizeof host - 1);
    const std::string temporary = path(".a.tmp-" + std::to_string(getpid()) + "-" + host);
    std::filesystem::create_symlink("/dev/full", temporary);
    const std::string text = complaint([&] {
        AtomicFile file(path("a"));
        file.write(std::string(100, 'x'));
        file.commit();
    });
    EXPECT_TRUE(text.starts_with(
        "cannot write file: DIR/a: No space left on device: expected room for 100 more bytes"))
        << text;
    EXPECT_NE(text.find("hint: free some space"), std::string::npos) << text;
    EXPECT_TRUE(list_directory(directory_).empty());
}

TEST_F(Files, FileSizeLimitIsAnErrorToo) {
    const int status = in_child([&] {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{1 << 20, 1 << 20};
        setrlimit(RLIMIT_FSIZE, &limit);
        const std::string text = complaint([&] {
            AtomicFile file(path("a"));
            file.write(std::string(3 << 20, 'x'));
        });
        std::fprintf(stderr, "%s\n", text.c_str());
        const bool clear =
            text.starts_with("cannot write file: DIR/a: File too large  hint: raise the limit");
        _exit(clear && list_directory(directory_).empty() ? 0 : 1);
    });
    EXPECT_EQ(status, 0);
}

TEST_F(Files, ARecordThatDoesNotFitLeavesNoPartOfItself) {
    append_line(path("log"), "first");
    const int status = in_child([&] {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{1000, 1000};
        setrlimit(RLIMIT_FSIZE, &limit);
        const std::string text = complaint([&] { append_line(path("log"), std::string(2000, 'x')); });
        std::fprintf(stderr, "%s\n", text.c_str());
        const bool clear =
            text.starts_with("cannot write file: DIR/log: File too large  hint: raise the limit");
        _exit(clear && read_file(path("log")) == "first\n" ? 0 : 1);
    });
    EXPECT_EQ(status, 0);
}

TEST_F(Files, ComplaintsNameThePath) {
    make_directories(path("dir"));
    mkfifo(path("pipe").c_str(), 0600);
    EXPECT_EQ(complaint([&] { read_file(path("no")); }),
              "cannot open file: DIR/no: No such file or directory");
    EXPECT_EQ(complaint([&] { read_file(path("dir")); }), "cannot read file: DIR/dir: Is a directory");
    EXPECT_EQ(complaint([&] { MappedFile file(path("no")); }),
              "cannot open file: DIR/no: No such file or directory");
    EXPECT_EQ(complaint([&] { MappedFile file(path("dir")); }), "cannot read file: DIR/dir: Is a directory");
    EXPECT_EQ(complaint([&] { MappedFile file("/dev/null"); }),
              "cannot map file: /dev/null: expected a regular file, got a pipe or a device");
    EXPECT_EQ(complaint([&] { MappedFile file(""); }),
              "cannot open file: (empty path): No such file or directory");
    EXPECT_EQ(complaint([&] { AtomicFile file(path("no/a")); }),
              "cannot create file: DIR/no/a: No such file or directory  hint: create the directory DIR/no");
    EXPECT_EQ(complaint([&] { AtomicFile file(path("dir")); }),
              "cannot write file: DIR/dir: expected a new or a regular file, got a directory");
    EXPECT_EQ(complaint([&] { AtomicFile file(path("pipe")); }),
              "cannot write file: DIR/pipe: expected a new or a regular file, got a pipe or a device");
    EXPECT_EQ(complaint([&] { AtomicFile file(""); }), "cannot write file: (empty path): Is a directory");
    EXPECT_EQ(complaint([&] { file_bytes(path("no")); }),
              "cannot read file: DIR/no: No such file or directory");
    EXPECT_EQ(complaint([&] { list_directory(path("no")); }),
              "cannot list directory: DIR/no: No such file or directory");
    EXPECT_EQ(complaint([&] { sha256_file(path("no")); }),
              "cannot open file: DIR/no: No such file or directory");
    EXPECT_EQ(complaint([&] { sha256_file(path("dir")); }), "cannot read file: DIR/dir: Is a directory");
    EXPECT_EQ(complaint([&] { append_line(path("dir"), "x"); }), "cannot open file: DIR/dir: Is a directory");
    EXPECT_EQ(complaint([&] { append_line("/dev/full", "x"); }).substr(0, 59),
              "cannot write file: /dev/full: No space left on device: expe");
    write_file_atomic(path("file"), "x");
    EXPECT_EQ(complaint([&] { make_directories(path("file")); }),
              "cannot create directory: DIR/file: Not a directory");
    EXPECT_EQ(
        complaint([&] { AtomicDirectory directory(path("no/d")); }),
        "cannot create directory: DIR/no/d: No such file or directory  hint: create the directory DIR/no");
}

TEST_F(Files, PermissionIsNamed) {
    if (geteuid() == 0) {
        // Root may do anything; in a child it can become nobody and lose that right.
        chmod(directory_.c_str(), 0755);
        write_file_atomic(path("secret"), "x");
        chmod(path("secret").c_str(), 0600);
        make_directories(path("locked"));
        write_file_atomic(path("locked/a"), "x");
        chmod(path("locked").c_str(), 0700);
        const int status = in_child([&] {
            if (setgid(65534) != 0 || setuid(65534) != 0) _exit(2);
            const bool read = complaint([&] { read_file(path("secret")); }) ==
                              "cannot open file: DIR/secret: Permission denied";
            const bool write = complaint([&] { AtomicFile f(path("new")); }) ==
                               "cannot create file: DIR/new: Permission denied";
            // A closed door is not an empty room, by a pattern or by name.
            const bool pattern =
                complaint([&] {
                    expand_globs(path("locked/*"), "--input");
                }).starts_with("cannot look for files: DIR/locked: Permission denied  hint: ");
            const bool name =
                complaint([&] {
                    expand_globs(path("locked/a"), "--input");
                }).starts_with("cannot look for files: DIR/locked/a: Permission denied  hint: ");
            _exit(read && write && pattern && name ? 0 : 1);
        });
        ASSERT_TRUE(WIFEXITED(status));
        if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "this sandbox forbids setuid";
        EXPECT_EQ(WEXITSTATUS(status), 0);
    } else {
        write_file_atomic(path("secret"), "x");
        chmod(path("secret").c_str(), 0000);
        EXPECT_EQ(complaint([&] { read_file(path("secret")); }),
                  "cannot open file: DIR/secret: Permission denied");
    }
}

TEST_F(Files, MappedFileMoves) {
    write_file_atomic(path("a"), "content");
    MappedFile first(path("a"));
    MappedFile second(std::move(first));
    EXPECT_EQ(first.bytes(), 0);
    EXPECT_EQ(second.text(), "content");
    first = std::move(second);
    EXPECT_EQ(first.text(), "content");
}

TEST_F(Files, AtomicDirectoryAppearsAtCommit) {
    {
        AtomicDirectory directory(path("d/"));
        EXPECT_TRUE(is_directory(directory.temporary()));
        write_file_atomic(directory.temporary() + "/one", "1");
        make_directories(directory.temporary() + "/sub");
        write_file_atomic(directory.temporary() + "/sub/two", "2");
        EXPECT_FALSE(path_exists(path("d")));
        directory.commit();
        EXPECT_THROW(directory.commit(), InternalError);
    }
    EXPECT_EQ(list_directory(directory_), Names{"d"});
    EXPECT_EQ(read_file(path("d/one")), "1");
    EXPECT_EQ(read_file(path("d/sub/two")), "2");
    {
        AtomicDirectory again(path("d"));
        EXPECT_EQ(complaint([&] { again.commit(); }),
                  "cannot create directory: DIR/d: expected a new path, got an existing one  hint: choose "
                  "another path, "
                  "or remove it");
    }
    EXPECT_EQ(list_directory(directory_), Names{"d"});
    EXPECT_EQ(read_file(path("d/one")), "1");
}

TEST_F(Files, AtomicDirectoryRemovesOnlyDeadWritersLeftovers) {
    const int status = in_child([&] {
        AtomicDirectory directory(path("d"));
        write_file_atomic(directory.temporary() + "/half", "x");
        raise(SIGKILL);
    });
    ASSERT_TRUE(WIFSIGNALED(status));
    ASSERT_EQ(list_directory(directory_).size(), 1u);
    EXPECT_FALSE(path_exists(path("d")));
    const std::string alive = "d.tmp-" + std::to_string(getppid());
    // A living writer, another host's, one that is no writer at all, another target's.
    const Names kept = {alive, "d.tmp-1-elsewhere", "d.tmp-notes", "dd.tmp-999999999"};
    for (const std::string& name : kept) make_directories(path(name));
    AtomicDirectory directory(path("d"));
    directory.commit();
    Names expected = kept;
    expected.push_back("d");
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(list_directory(directory_), expected);
}

TEST_F(Files, AtomicFileRemovesOnlyDeadWritersLeftovers) {
    const int status = in_child([&] {
        AtomicFile file(path("a"));
        file.write(std::string(2 << 20, 'n'));
        raise(SIGKILL);
    });
    ASSERT_TRUE(WIFSIGNALED(status));
    ASSERT_EQ(list_directory(directory_).size(), 1u) << "the leftover";
    const std::string alive = ".a.tmp-" + std::to_string(getppid());
    const Names kept = {alive, ".a.tmp-1-elsewhere", ".a.tmp-notes", ".aa.tmp-999999999", "a.tmp-999999999"};
    for (const std::string& name : kept) write_file_atomic(path(name), "x");
    write_file_atomic(path("a"), "whole");
    Names expected = kept;
    expected.push_back("a");
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(list_directory(directory_), expected);
    EXPECT_EQ(read_file(path("a")), "whole");
}

TEST_F(Files, SharedFileIsFilledFromAnywhere) {
    create_file_of_size(path("a"), 10);
    EXPECT_EQ(read_file(path("a")), std::string(10, '\0'));
    {
        SharedFile one(path("a")), other(path("a"));
        other.write_at(7, "xyz", 3);
        one.write_at(0, "abc", 3);
        one.sync();
    }
    EXPECT_EQ(read_file(path("a")), "abc" + std::string(4, '\0') + "xyz");
    create_file_of_size(path("a"), 0);
    EXPECT_EQ(read_file(path("a")), "");
    EXPECT_EQ(complaint([&] { SharedFile file(path("b")); }),
              "cannot open file: DIR/b"
              ": No such file or directory  hint: all ranks must see one and the same directory");
    // Room is taken when the file is made, not when it is filled.
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    const auto handler = signal(SIGXFSZ, SIG_IGN);
    const struct rlimit small = {5000, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const std::string told = complaint([&] { create_file_of_size(path("c"), 5001); });
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    EXPECT_NE(told.find("cannot write file: DIR/c: File too large"), std::string::npos) << told;
}

TEST_F(Files, AppendLine) {
    append_line(path("log"), "one");
    append_line(path("log"), "two");
    EXPECT_EQ(read_file(path("log")), "one\ntwo\n");
}

TEST_F(Files, ReadFileReadsPipes) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const std::string text(30'000, 'p');
    ASSERT_EQ(write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
    close(ends[1]);
    EXPECT_EQ(read_file("/dev/fd/" + std::to_string(ends[0])), text);
    close(ends[0]);
}

TEST_F(Files, Globs) {
    for (const char* name : {"a1.txt", "a2.txt", "b.txt", "c.md", "d[1].txt"})
        write_file_atomic(path(name), "");
    const auto expand = [&](std::string patterns) {
        Names names;
        for (size_t at; (at = patterns.find('@')) != std::string::npos;)
            patterns.replace(at, 1, directory_ + "/");
        for (const std::string& found : expand_globs(patterns, "--input"))
            names.push_back(found.substr(directory_.size() + 1));
        return names;
    };
    EXPECT_EQ(expand("@b.txt"), (Names{"b.txt"}));
    EXPECT_EQ(expand("@?.txt,@a*,@a1.txt"), (Names{"a1.txt", "a2.txt", "b.txt"}));
    EXPECT_EQ(expand("@[ac]*.*"), (Names{"a1.txt", "a2.txt", "c.md"}));
    EXPECT_EQ(expand("@d[1].txt"), (Names{"d[1].txt"}));
    EXPECT_EQ(
        complaint([&] { expand("@a*,@*.json"); }),
        "no file matches: DIR/*.json  hint: give --input the path of an existing file, or quote a pattern");
    EXPECT_EQ(complaint([&] { expand("@a*,"); }),
              "no file matches: (empty pattern)  hint: give --input the path of an existing file, or quote a "
              "pattern");
    EXPECT_NE(complaint([&] { expand(""); }), "(accepted)");
    EXPECT_NE(complaint([&] { expand("@nowhere/*"); }).find("no file matches: DIR/nowhere/*"),
              std::string::npos);
    write_file_atomic(path("e,f.txt"), "");
    EXPECT_EQ(expand("@e,f.txt"), (Names{"e,f.txt"})) << "a comma in a name that exists";
}

TEST_F(Files, Hashes) {
    // FIPS 180-2 appendix B.1, and the empty string.
    EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    write_file_atomic(path("abc"), "abc");
    EXPECT_EQ(sha256_file(path("abc")), sha256_hex("abc"));
    const std::string pieces((3 << 20) + 5, 'p');  // more than one read
    write_file_atomic(path("pieces"), pieces);
    EXPECT_EQ(sha256_file(path("pieces")), sha256_hex(pieces));
    // XXH3-128 of nothing with seed 0 (xxHash's own sanity table).
    EXPECT_EQ(hex(hash128(nullptr, 0)), "99aa06d3014798d86001c324468d497f");
    EXPECT_NE(hash128("abc", 3), hash128("abc", 3, 1));
    EXPECT_NE(hash128("abc", 3), hash128("abd", 3));
    EXPECT_EQ(hex({0x0123456789abcdef, 0xfedcba9876543210}), "fedcba98765432100123456789abcdef");
}
