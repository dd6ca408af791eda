// Where the output does not fit: a full disk, a limit on file sizes, a standard output that takes nothing.
// One line on stderr, exit code 2, nothing half-written, and what was whole before continues elsewhere.
#include <sys/mount.h>

#include "tests/toy_run.h"

namespace {

using Strings = std::vector<std::string>;
using FullDisk = ToyRun;

}  // namespace

// A disk that fills up in the middle of a run: said in one line, and the checkpoint before it continues
// elsewhere to the same weights.
TEST_F(FullDisk, InTheMiddleOfARun) {
    const std::string whole = hash_of(fresh()), disk = fresh("disk"), elsewhere = fresh();
    make_directories(disk);
    if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=6m") != 0)
        GTEST_SKIP()
            << "a small file system cannot be mounted here (not root); FileSizeLimitOfTheLog covers the rest";
    const std::string out = disk + "/run";
    // Three files of 0.6 MiB a checkpoint: the fourth does not fit.
    const Outcome full = train(out, {"--checkpoint-every", "4", "--keep", "0"});
    std::filesystem::copy(out, elsewhere, std::filesystem::copy_options::recursive);
    umount(disk.c_str());
    expect_refusal(full, {"cannot write file", "No space left on device", "hint:"}, "full disk");
    for (const std::string& name : list_directory(elsewhere))
        EXPECT_EQ(name.find(".tmp-"), std::string::npos) << "left over: " << name;
    EXPECT_GE(log_lines(elsewhere, "step").size(), 4u);  // and every line is whole
    const Outcome rest = train(elsewhere);
    EXPECT_NE(rest.err.find("resuming from"), std::string::npos) << rest.err;
    EXPECT_EQ(weights(rest), whole);
}

// The log itself can be what does not fit: its last line must not be half of one.
TEST_F(FullDisk, FileSizeLimitOfTheLog) {
    const std::string whole = hash_of(fresh(), {"--steps", "60"}), out = fresh();
    ASSERT_EQ(train(out, {"--steps", "60", "--stop-at", "10"}).exit_code, 0);
    RunOptions limited;
    limited.max_file_bytes = file_bytes(out + "/log.jsonl") + 1000;
    const Outcome full = train(out, {"--steps", "60"}, limited);
    expect_refusal(full, {"cannot write file", "log.jsonl", "File too large", "hint: raise the limit"},
                   "file size limit");
    EXPECT_GT(log_lines(out, "step").size(), 10u);
    EXPECT_EQ(hash_of(out, {"--steps", "60"}), whole);
}

// What a program prints is its result: a disk that does not take it is not success.
TEST_F(FullDisk, StandardOutput) {
    const std::string run = fresh(), model = run + "/step_00000003";
    ASSERT_EQ(train(run, {"--steps", "3"}).exit_code, 0);
    const std::string tokenizer = path("shards/tokenizer");
    const struct {
        const char* program;
        Strings arguments;
        std::string input;
    } rows[] = {
        {"tokenize", {"decode", "--tokenizer", tokenizer}, "100 101 102"},
        {"tokenize", {"encode", "--tokenizer", tokenizer, "--text", "the baker"}, ""},
        {"tokenize", {"inspect", "--tokenizer", tokenizer}, ""},
        {"tokenize", {"encode", "--help"}, ""},
        {"train", {"--help"}, ""},
        {"generate", {"--model", model, "--prompt", "the", "--max-new-tokens", "3"}, ""},
        {"evaluate", {"--model", model, "--data", path("shards/val_*.bin")}, ""},
        {"train", flags(run, {"--steps", "3"}), ""},
    };
    for (const auto& row : rows) {
        const Outcome full =
            run_program(row.program, row.arguments, {.input = row.input, .stdout_path = "/dev/full"});
        expect_refusal(full, {"cannot write to standard output", "No space left on device", "hint:"},
                       std::string(row.program) + " " + row.arguments[0]);
    }
}

// Every program answers a limit on its files with a line, not with a signal, and leaves nothing half-written.
TEST_F(FullDisk, FileSizeLimitOfCurateAndTokenize) {
    const std::string sources = fresh("sources"), text = sources + "/text", out = fresh("curated");
    make_directories(text);
    for (uint64_t i = 0; i < 40; ++i)
        write_file_atomic(text + "/" + std::to_string(i) + ".txt", toy_document(i, 200));
    write_file_atomic(sources + "/sources.json",
                      "[{\"name\": \"toy\", \"path\": \"text\", \"license\": \"CC0-1.0\", "
                      "\"consent\": \"license\", \"origin\": \"a grammar\"}]");
    RunOptions limited;
    limited.max_file_bytes = 4096;
    const Strings curate = {"--sources", sources + "/sources.json", "--out", out};
    expect_refusal(run_program("curate", curate, limited),
                   {"cannot write file", "File too large", "hint: raise the limit"}, "curate");
    EXPECT_FALSE(path_exists(out));
    const Outcome curated = run_program("curate", curate);
    ASSERT_EQ(curated.exit_code, 0) << curated.err;

    const std::string learned = fresh("tokenizer"), shards = fresh("shards");
    const Strings learn = {"train", "--input", text + "/*.txt", "--vocab-size", "300", "--out", learned};
    expect_refusal(run_program("tokenize", learn, limited),
                   {"cannot write file", "File too large", "hint: raise the limit"}, "tokenize train");
    EXPECT_FALSE(path_exists(learned));
    const Strings encode = {
        "encode", "--tokenizer", path("shards/tokenizer"), "--input", out + "/train.jsonl.zst",
        "--out",  shards};
    limited.max_file_bytes = file_bytes(path("shards/tokenizer/tokenizer.json")) + 1000;  // a shard is larger
    expect_refusal(run_program("tokenize", encode, limited),
                   {"cannot write file", "File too large", "hint: raise the limit"}, "tokenize encode");
    EXPECT_EQ(contents_of(shards).find(".bin"), std::string::npos) << "a shard without its end";
}
