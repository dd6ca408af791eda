// How failures are worded and how a program ends: one line on stderr, exit 2 for input, 1 for everything
// else.
#include "core/error.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

Piece::Piece(double v) {
    char digits[32];
    char* const end = digits + sizeof digits;
    // Of the two shortest forms, the one that people write: 0.0003 and 100000, but 1e-08.
    const bool plain = v == 0 || (std::fabs(v) >= 1e-5 && std::fabs(v) < 1e15);
    const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
    text.assign(digits, std::to_chars(digits, end, v, format).ptr);
}

std::string cat(std::initializer_list<Piece> pieces) {
    std::string all;
    for (const Piece& piece : pieces) all += piece.text;
    return all;
}

void fail_input(const Complaint& complaint) {
    std::string line = complaint.what;
    if (!complaint.where.empty()) line += ": " + complaint.where;
    if (!complaint.expected.empty()) line += ": expected " + complaint.expected;
    if (!complaint.actual.empty())
        line += (complaint.expected.empty() ? ": got " : ", got ") + complaint.actual;
    if (!complaint.hint.empty()) line += "  hint: " + complaint.hint;
    throw InputError(line);
}

void fail_check(const char* file, int line, const char* expression, const std::string& detail) {
    throw InternalError(cat({file, ":", line, ": CHECK(", expression, ") failed: ", detail}));
}

Failure failure_of(const std::exception_ptr& exception) {
    Failure failure;
    try {
        std::rethrow_exception(exception);
    } catch (const InputError& error) {
        failure = {cat({"error: ", error.what()}), 2};
    } catch (const std::bad_alloc&) {
        failure = {"error: out of memory  hint: use a smaller model, batch or input", 1};
    } catch (const std::exception& error) {
        failure = {cat({"internal error: ", error.what()}), 1};
    } catch (...) {
        failure = {"internal error: an exception of unknown type", 1};
    }
    for (char& c : failure.line)
        if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    return failure;
}

void print_and_flush(const std::string& text) {
    errno = 0;
    std::fputs(text.c_str(), stdout);
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
    // An earlier write may have failed, and its reason been forgotten since.
    fail_input({.what = "cannot write to standard output",
                .where = errno != 0 ? std::strerror(errno) : "a write failed",
                .hint = "free some space, or send the output elsewhere"});
}
void flush_stdout() { print_and_flush(""); }

int run_main(int argc, char** argv, int (*body)(int argc, char** argv)) {
    try {
        std::signal(SIGXFSZ, SIG_IGN);
        const int exit_code = body(argc, argv);
        flush_stdout();
        return exit_code;
    } catch (...) {
        const Failure failure = failure_of(std::current_exception());
        std::fflush(stdout);
        std::fprintf(stderr, "%s\n", failure.line.c_str());
        return failure.exit_code;
    }
}
