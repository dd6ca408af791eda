// The machine that the emulator pretends to be, as far as the runtime reports it: for tests of what a program
// says where there is no GPU, or one that it cannot use.
#pragma once

namespace simt {

struct Machine {
    int num_gpus = 1;
    int capability = 90;                  // 10 * major + minor
    int driver = 13000, toolkit = 13000;  // 1000 * major + 10 * minor; driver 0: none is installed
};
void set_machine(const Machine& machine);

}  // namespace simt
