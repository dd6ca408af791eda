// The `self` backend: one rank. Every collective is the identity, or a copy where shard and full differ.
#include "core/comm.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "core/error.h"

namespace {

class SelfComm final : public Comm {
public:
    int rank() const override { return 0; }
    int size() const override { return 1; }
    void barrier() override {}
    void all_reduce_sum(Tensor t, Stream) override { check_f32("all_reduce_sum", t); }
    void reduce_scatter_sum(Tensor shard, Tensor full, Stream) override {
        check_f32("reduce_scatter_sum", full);
        copy("reduce_scatter_sum", shard, full);
    }
    void all_gather(Tensor full, Tensor shard, Stream) override { copy("all_gather", full, shard); }
    void broadcast(Tensor, int root, Stream) override { CHECK(root == 0, cat({"broadcast: root=", root})); }
    void abort_all(const std::string& message, int exit_code) override {
        std::fprintf(stderr, "error: %s\n", message.c_str());
        std::fflush(nullptr);
        _exit(exit_code);  // no destructors: other threads may still be at work
    }

private:
    static void check_f32(const char* collective, const Tensor& t) {
        CHECK(t.dtype == DType::f32, cat({collective, ": ", shape_text(t)}));
    }
    static void copy(const char* collective, const Tensor& to, const Tensor& from) {
        CHECK(to.dtype == from.dtype && to.size() == from.size() && to.device == from.device,
              cat({collective, ": from ", shape_text(from), " to ", shape_text(to)}));
        if (to.data == from.data || to.size() == 0) return;
        CHECK(to.device == Device::cpu,
              cat({collective, ": device memory must be shared by shard and full"}));
        std::memcpy(to.data, from.data, static_cast<size_t>(to.bytes()));
    }
};

}  // namespace

std::unique_ptr<Comm> make_self_comm() { return std::make_unique<SelfComm>(); }
