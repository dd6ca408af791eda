# Ingot. `make help` lists the targets; it is generated from the `##` comments below.
#   make            every program into build/        make test T=rope     one test
#   make demo       raw text -> trained model        make bench B=matmul  one benchmark
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:

BUILD    ?= build
comma    := ,
CXX      ?= g++
ifeq ($(origin CXX),default)
CXX      := g++
endif
WARNINGS := -Wall -Wextra -Werror -Wno-psabi
# No -ffast-math: it deletes the NaN checks a trainer needs. Vector code spells its own reductions out.
CXXFLAGS ?= -O2 -g1
COMPILE   = $(CXX) -std=c++20 $(CXXFLAGS) $(CUDA) $(WARNINGS) -I. -MMD -MP -pthread
# -fno-gnu-unique: unique symbols escape objcopy, and the sets would share them. Clang makes none.
KERNEL   := -O3 $(if $(findstring clang,$(CXX)),,-fno-gnu-unique) -fno-math-errno -fno-trapping-math -ffp-contract=fast

# ---- kernels: one source, one compilation per instruction set (kernels/isa.h) ---------------------------------------
ARCH := $(shell uname -m)
ifeq ($(ARCH),x86_64)
ISAS := avx2 avx512 avx512_bf16
endif
ISA_avx2        := -march=x86-64-v3
ISA_avx512      := -march=x86-64-v4
ISA_avx512_bf16 := -march=x86-64-v4 -mavx512bf16

KERNEL_SOURCES := $(wildcard kernels/*.cpp)
$(BUILD)/kernels/plain/%.o: kernels/%.cpp
	@mkdir -p $(@D)
	$(COMPILE) $(KERNEL) -c $< -o $@
define isa_rules
$(BUILD)/kernels/$(1)/%.o: kernels/%.cpp
	@mkdir -p $$(@D)
	$$(COMPILE) $$(KERNEL) $$(ISA_$(1)) -DISA_NAMESPACE=isa_$(1) -c $$< -o $$@
# One relocatable object whose only global symbols are the set's own: inline functions compiled for it stay inside it.
$(BUILD)/kernels/$(1).o: $$(KERNEL_SOURCES:kernels/%.cpp=$(BUILD)/kernels/$(1)/%.o)
	ld -r --force-group-allocation $$^ -o $$@.tmp
	objcopy --wildcard --keep-global-symbol='*isa_$(1)*' $$@.tmp $$@
	@rm -f $$@.tmp
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rules,$(isa))))

# ---- CUDA kernels: one source, compiled for GPUs by nvcc and for the emulator by g++ (kernels/gpu.h) ------------------
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
ifneq ($(NVCC),)
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA      := -DINGOT_CUDA
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
# Native code for Ampere and Hopper; compute_80's PTX carries later GPUs.
GENCODE   ?= -gencode arch=compute_80,code=[sm_80,compute_80] -gencode arch=compute_90a,code=sm_90a
COMPILE_CUDA := $(NVCC) -std=c++20 -O3 -I. --expt-relaxed-constexpr -lineinfo -Werror all-warnings $(GENCODE) \
                -Xcompiler "$(WARNINGS) -Wno-unused-parameter -pthread"
endif
# fmaf must be an instruction, or it is a quarter of the emulator's time: the machine that builds is the one that emulates.
SIMT_CXX      ?= $(CXX)
SIMT_CXXFLAGS ?= $(CXXFLAGS)
SIMT_DIALECT  := -isystem kernels/simt/include -fno-strict-aliasing \
                $(if $(shell grep -m1 -w fma /proc/cpuinfo),-march=x86-64-v3)
CUDA_SOURCES := core/device_runtime.cu $(wildcard kernels/*.cu)
# MemorySanitizer (test-full) takes the host's local variables for set, since the C++ library that sets them is not
# instrumented; not the kernels'.
HOST_LOCALS_ARE_SET := -mllvm -msan-poison-stack=0
$(BUILD)/simt/%.o: %.cu
	@mkdir -p $(@D)
	$(filter-out $(HOST_LOCALS_ARE_SET),$(COMPILE)) $(SIMT_DIALECT) -x c++ -c $< -o $@
# ThreadSanitizer watches the kernels, not the emulator under them: SIMT_CXX and SIMT_CXXFLAGS are then others (test-full).
$(BUILD)/simt/%.o: %.cpp
	@mkdir -p $(@D)
	$(subst $(CXX) ,$(SIMT_CXX) ,$(subst $(CXXFLAGS),$(SIMT_CXXFLAGS),$(COMPILE))) $(SIMT_DIALECT) -c $< -o $@
$(BUILD)/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(COMPILE_CUDA) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
# Later GPUs cannot get FP8 instructions from compute_80's PTX.
$(BUILD)/cuda/kernels/matmul_fp8.o $(BUILD)/cuda/tests/gpu_wrappers_fp8.o: COMPILE_CUDA += -gencode arch=compute_89,code=[sm_89,compute_89]
gpu_objects = $(1:%.cu=$(BUILD)/simt/%.o) $(if $(NVCC),$(1:%.cu=$(BUILD)/cuda/%.o))
GPU_OBJECTS := $(call gpu_objects,$(CUDA_SOURCES)) $(patsubst %.cpp,$(BUILD)/simt/%.o,$(wildcard kernels/simt/*.cpp))
$(BUILD)/libgpu.a: $(GPU_OBJECTS)
	@rm -f $@
	ar rcs $@ $^

# ---- ranks: MPI of the distribution, Open MPI or MPICH; only core/comm_mpi.cpp sees it -------------------------------
MPI_FLAGS := $(filter -I% -L% -l% -Wl$(comma)%,$(shell mpicc -show 2>/dev/null))
ifneq ($(MPI_FLAGS),)
$(BUILD)/core/comm.o $(BUILD)/core/comm_mpi.o: COMPILE += -DINGOT_MPI $(patsubst -I%,-isystem %,$(filter -I%,$(MPI_FLAGS)))
MPI_LIBS := $(filter-out -I%,$(MPI_FLAGS))
endif

# ---- libraries, one per layer; *_main.cpp are programs -------------------------------------------------------------
$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@
# The commit goes into checkpoints and benchmarks. A stamp that changes with it makes train.o (and bench/commit.o) alone be
# compiled again.
COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
$(BUILD)/commit: FORCE
	@mkdir -p $(@D)
	@echo $(COMMIT) | cmp -s - $@ || echo $(COMMIT) > $@
FORCE:
$(BUILD)/train.o: train.cu $(BUILD)/commit
	$(COMPILE) -DINGOT_COMMIT='"$(COMMIT)"' -x c++ -c $< -o $@

sources = $(filter-out %_main.cpp,$(wildcard $(1)/*.cpp))
define library_rules
$(BUILD)/lib$(1).a: $(patsubst %.cpp,$(BUILD)/%.o,$(call sources,$(1)))
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach layer,core tokenizer data model eval,$(eval $(call library_rules,$(layer))))
$(BUILD)/libkernels.a: $(KERNEL_SOURCES:kernels/%.cpp=$(BUILD)/kernels/plain/%.o) $(ISAS:%=$(BUILD)/kernels/%.o)
	@rm -f $@
	ar rcs $@ $^

LIBRARIES := $(foreach layer,eval model data tokenizer kernels gpu core,$(BUILD)/lib$(layer).a)
# kernels and core know of the gpu library, and it of them.
LINKED    := -Wl,--start-group $(LIBRARIES) -Wl,--end-group
LDLIBS    := $(CUDA_LIBS) -Wl,--as-needed $(MPI_LIBS) -Wl,--no-as-needed -lsimdjson -lgumbo -lzstd -lxxhash -lcrypto

# ---- programs ------------------------------------------------------------------------------------------------------
MAINS    := $(wildcard core/*_main.cpp tokenizer/*_main.cpp data/*_main.cpp model/*_main.cpp eval/*_main.cpp)
PROGRAMS := $(foreach main,$(MAINS),$(BUILD)/$(patsubst %_main.cpp,%,$(notdir $(main)))) $(if $(wildcard train.cu),$(BUILD)/train)
define program_rules
$(BUILD)/$(patsubst %_main.cpp,%,$(notdir $(1))): $(BUILD)/$(1:.cpp=.o) $(LIBRARIES)
	$$(CXX) -pthread $$< $$(LINKED) $$(LDLIBS) -o $$@
endef
$(foreach main,$(MAINS),$(eval $(call program_rules,$(main))))
$(BUILD)/train: $(BUILD)/train.o $(LIBRARIES)
	$(CXX) -pthread $< $(LINKED) $(LDLIBS) -o $@

JOBS ?= $(shell nproc)
.PHONY: all programs deps demo test test-full test-peers bench profile sass lint format help clean
programs: $(PROGRAMS)
all:  ## every program into build/
	@scripts/deps.sh build
	@$(MAKE) -j$(JOBS) parts programs
.PHONY: parts
parts:
	@echo "ingot: cpu kernels for plain$(ISAS:%= %) | cuda: $(if $(NVCC),by $(NVCC),no nvcc was found, so kernels run in the emulator only) | mpi: $(if $(MPI_FLAGS),by mpicc,no mpicc was found, so one rank only)"
deps:  ## install what is missing from the distribution's packages (root or sudo)
	@scripts/deps.sh build test test-full bench lint demo peers
demo:  ## raw text to an evaluated model and a report, one command; CORPUS=DIR for your own text
	@scripts/deps.sh demo
	@$(MAKE) all
	@CORPUS="$(CORPUS)" scripts/demo.sh $(BUILD)

# ---- tests and benchmarks ------------------------------------------------------------------------------------------
# What only tests and benchmarks have: kernels of their own, and what several benchmarks share.
OWN_KERNELS  := $(filter-out tests/simt_%,$(wildcard tests/*.cu bench/ladder/*.cu))
SIMT_KERNELS := $(wildcard tests/simt_*.cu)  # of the emulator's own tests
BENCH_PARTS := $(filter-out bench/bench_%,$(wildcard bench/*.cpp bench/ladder/*.cpp))
$(BUILD)/libbench.a: $(call gpu_objects,$(OWN_KERNELS)) $(SIMT_KERNELS:%.cu=$(BUILD)/simt/%.o) $(BENCH_PARTS:%.cpp=$(BUILD)/%.o)
	@rm -f $@
	ar rcs $@ $^
$(BUILD)/bench/commit.o: bench/commit.cpp $(BUILD)/commit
	@mkdir -p $(@D)
	$(COMPILE) -DINGOT_COMMIT='"$(COMMIT)"' -c $< -o $@
$(patsubst %.cpp,$(BUILD)/%.o,$(wildcard tests/test_simt*.cpp)): $(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(COMPILE) $(SIMT_DIALECT) -c $< -o $@
# MemorySanitizer needs a GoogleTest of its own making: test-full builds it from Debian's sources.
GTEST   ?= -lgtest -lgtest_main
GTEST_SOURCES := /usr/src/googletest/googletest
$(BUILD)/libgtest.a: $(GTEST_SOURCES)/src/gtest-all.cc $(GTEST_SOURCES)/src/gtest_main.cc
	@mkdir -p $(@D)/gtest
	for source in $^; do $(CXX) -std=c++20 $(CXXFLAGS) -I$(GTEST_SOURCES) -c $$source -o $(@D)/gtest/$$(basename $$source).o || exit; done
	ar rcs $@ $(@D)/gtest/*.o
TESTS   := $(patsubst tests/%.cpp,$(BUILD)/tests/%,$(wildcard tests/test_*.cpp))
$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libbench.a $(LIBRARIES) $(filter %.a,$(GTEST))
	$(CXX) -pthread $< $(BUILD)/libbench.a $(LINKED) $(LDLIBS) $(GTEST) -o $@
BENCHES := $(patsubst bench/%.cpp,$(BUILD)/bench/%,$(wildcard bench/bench_*.cpp))
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libbench.a $(LIBRARIES)
	$(CXX) -pthread $< $(BUILD)/libbench.a $(LINKED) $(LDLIBS) -o $@
$(BUILD)/bench/bench_ops: LDLIBS += -lbenchmark

TESTED_BENCHES := $(BUILD)/bench/bench_gpu $(BUILD)/bench/bench_train
.PHONY: test-programs
test-programs: $(TESTS) $(PROGRAMS) $(TESTED_BENCHES)
ifdef T
TEST_RUN := $(BUILD)/tests/test_$(patsubst test_%,%,$(T))
else
TEST_RUN := $(TESTS)
endif
test:  ## everything that can be tested here; T=name for one
	@scripts/deps.sh build test demo
	@$(MAKE) -j$(JOBS) $(if $(T),$(TEST_RUN) $(TESTED_BENCHES) programs,test-programs)
	@scripts/test.sh $(BUILD)/tests/logs $(TEST_RUN)
# The tests that run kernels on devices (tests/on_device.h).
DEVICE_TESTS := $(patsubst tests/%.cpp,%,$(shell grep -l 'gpus()' tests/test_*.cpp))
# MemorySanitizer: what the C++ library has set seems unset to it, as it is not instrumented. So its templates are compiled
# anew, what operator new returns is taken for set, and checkpoints (JSON in its trees) are left out.
test-full:  ## test, 200 kills of runs, then all under ASan and UBSan; the kernels also under TSan and MSan; planted bugs under ASan, TSan and MSan
	@scripts/deps.sh test-full
	@$(MAKE) test
	@INGOT_KILLS=200 $(BUILD)/tests/test_train_crash
	@$(MAKE) test NVCC= BUILD=build/asan CXX="$(CXX) -fsanitize=address,undefined" \
		CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
	@setarch -R $(MAKE) test NVCC= BUILD=build/tsan CXX="$(CXX) -fsanitize=thread" CXXFLAGS="-O1 -g -fsanitize=thread" \
		SIMT_CXX="$(CXX)" SIMT_CXXFLAGS="-O2 -g -DSIMT_TSAN" TESTS="$(DEVICE_TESTS:%=build/tsan/tests/%)"
	@MSAN_OPTIONS=poison_in_malloc=0:poison_in_free=0 GTEST_FILTER=-GpuCheckpoint.* \
		$(MAKE) test NVCC= ISAS= WARNINGS= BUILD=build/msan CXX="clang++ -fsanitize=memory -DINGOT_PLAIN_ONLY" \
		CXXFLAGS="-O1 -g1 $(HOST_LOCALS_ARE_SET) -D_GLIBCXX_EXTERN_TEMPLATE=0" GTEST=build/msan/libgtest.a \
		TESTS="$(DEVICE_TESTS:%=build/msan/tests/%)"
	@scripts/simt_planted.sh
test-peers:  ## against transformers, tokenizers and tiktoken in a private Python environment
	@scripts/deps.sh peers || true  # what cannot be had is a counted skip
	@$(MAKE) all
	@scripts/peers/run.sh $(BUILD)
bench:  ## B=train, matmul, attention, ops, gpu, ladder: measured beside the machine's own peak, in one run
	@scripts/deps.sh build bench
	@$(MAKE) -j$(JOBS) $(if $(B),$(BUILD)/bench/bench_$(B),$(BENCHES))
	@for bench in $(if $(B),$(BUILD)/bench/bench_$(B),$(BENCHES)); do $$bench $(ARGS) || exit; done
profile:  ## K=attention: Nsight Compute's report of an op's kernels at a real shape
	@scripts/inspect.sh has-profiler "$(K)" "$(NVCC)"
	@$(MAKE) -j$(JOBS) $(BUILD)/bench/bench_gpu
	@scripts/inspect.sh profile "$(K)" $(BUILD) $(ARGS)
# Kernels of one op: kernels/K.cu and kernels/K_*.cu; of a ladder's rung: K=ladder/gemm_5_tensor_cores.
SASS_OBJECTS = $(patsubst %.cu,$(BUILD)/cuda/%.o,$(if $(K),$(wildcard kernels/$(K).cu kernels/$(K)_*.cu bench/$(K).cu)))
sass:  ## K=attention: the machine code of an op's kernels
	@scripts/inspect.sh has-sass "$(K)" "$(NVCC)" $(SASS_OBJECTS)
	@$(MAKE) -s -j$(JOBS) $(SASS_OBJECTS)
	@scripts/inspect.sh sass "$(K)" $(SASS_OBJECTS)
lint:  ## layers, sizes, names, format, paths in the documents
	@scripts/deps.sh lint
	@scripts/lint.sh
format:  ## clang-format on every source file
	@scripts/deps.sh lint
	clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
# Variables that `make help` names:
#= T=name          the one test to run              make test T=rope
#= B=name          the one benchmark to run         make bench B=train
#= K=name          the op to look into              make sass K=rmsnorm
#= ARGS='...'      flags of the benchmark           make bench B=matmul ARGS='--tokens 256'
#= CORPUS=DIR      your own text for the demo       make demo CORPUS=notes
#= DEMO_DIR=DIR    where the demo works             build/demo
#= DEMO_STEPS=N    training steps of the demo       300
#= BUILD=DIR       where to build                   build
#= JOBS=N          compilations at a time           all cores
help:  ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22
	@echo; sed -n 's/^#= /  /p' Makefile
clean:  ## remove build/
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
