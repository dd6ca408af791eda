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

namespace {

// One line whatever the message holds: it may quote a user's text.
void print_line(const char* kind, std::string message) {
    for (char& c : message)
        if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", kind, message.c_str());
}

}  // namespace

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

int run_main(int argc, char** argv, int (*body)(int argc, char** argv), void (*on_failure)()) {
    int exit_code = 1;
    try {
        std::signal(SIGXFSZ, SIG_IGN);
        const int body_code = body(argc, argv);
        flush_stdout();
        return body_code;
    } catch (const InputError& error) {
        print_line("error", error.what());
        exit_code = 2;
    } catch (const InternalError& error) {
        print_line("internal error", error.what());
    } catch (const std::bad_alloc&) {
        print_line("error", "out of memory  hint: use a smaller model, batch or input");
    } catch (const std::exception& error) {
        print_line("internal error", error.what());
    } catch (...) {
        print_line("internal error", "an exception of unknown type");
    }
    if (on_failure != nullptr) on_failure();
    return exit_code;
}
