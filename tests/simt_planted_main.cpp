// The program of scripts/simt_planted.sh: `simt_planted NAME...` runs kernels of simt_planted.cu; exit 1 when
// one gave a wrong result.
#include <cstdio>

#include "tests/simt_planted.h"

int main(int argc, char** argv) {
    bool right = true;
    for (int i = 1; i < argc; ++i) {
        if (run_planted(argv[i])) continue;
        std::fprintf(stderr, "simt_planted: %s: wrong result\n", argv[i]);
        right = false;
    }
    return right ? 0 : 1;
}
