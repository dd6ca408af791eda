// The commit that a benchmark's lines carry; compiled again when it changes.
#include "bench/gpu_report.h"

const char* bench_commit() { return INGOT_COMMIT; }
