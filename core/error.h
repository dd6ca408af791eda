// Errors come in two kinds. InputError: the user, a file or a flag is wrong; one line on stderr, exit 2.
// InternalError: this program is wrong; the failed expression with its values, exit 1.
#pragma once
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

// One piece of a message; numbers print in full.
struct Piece {
    std::string text;
    Piece(const char* s) : text(s) {}
    Piece(std::string_view s) : text(s) {}
    Piece(const std::string& s) : text(s) {}
    Piece(char c) : text(1, c) {}
    Piece(int v) : text(std::to_string(v)) {}
    Piece(unsigned v) : text(std::to_string(v)) {}
    Piece(long v) : text(std::to_string(v)) {}
    Piece(unsigned long v) : text(std::to_string(v)) {}
    Piece(long long v) : text(std::to_string(v)) {}
    Piece(unsigned long long v) : text(std::to_string(v)) {}
    Piece(double v);  // shortest form that reads back
};
std::string cat(std::initializer_list<Piece> pieces);  // cat({"step ", 3, ": loss ", 2.5})

struct InputError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct InternalError : std::logic_error {
    using std::logic_error::logic_error;
};

// What is wrong with the input. Empty fields are left out of the line:
//   "error: <what>: <where>: expected <expected>, got <actual>  hint: <hint>"
struct Complaint {
    std::string what;
    std::string where = {};  // file, line, byte, tensor
    std::string expected = {};
    std::string actual = {};
    std::string hint = {};  // the flag or command to try
};
[[noreturn]] void fail_input(const Complaint& complaint);
[[noreturn]] void fail_check(const char* file, int line, const char* expression, const std::string& detail);

// CHECK(n > 0, cat({"n=", n})): an invariant of the program, never a judgement on input.
#define CHECK(condition, detail)                                                \
    do {                                                                        \
        if (!(condition)) fail_check(__FILE__, __LINE__, #condition, (detail)); \
    } while (0)

// InputError when stdout could not take all that was printed: a full disk must not look like success.
void flush_stdout();
void print_and_flush(const std::string& text);  // to stdout, likewise

// What a program says of the exception that ends it, and its exit code.
struct Failure {
    std::string line;  // without the newline; one line whatever the message holds: it may quote a user's text
    int exit_code = 1;
};
Failure failure_of(const std::exception_ptr& exception);

// Runs a program's body and flushes stdout; turns InputError into exit 2 and every other exception into exit
// 1, one line on stderr each. A file beyond `ulimit -f` is an error like a full disk, not a signal.
int run_main(int argc, char** argv, int (*body)(int argc, char** argv));
