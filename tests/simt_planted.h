// Correct kernels of the emulator's tests, and the same with one bug planted in each. tests/test_simt.cpp
// looks for the bugs in a plain build, scripts/simt_planted.sh with the sanitizers.
#pragma once

// Runs a correct kernel, or one with a bug, by the name it has in simt_planted.cu; whether its result was
// right. The emulator or a sanitizer may end the program before that.
bool run_planted(const char* name);
