// The transformer: forward, loss and hand-written backward over one micro-batch. All memory is planned and
// allocated once.
//   x = wte[tokens] (+ wpe[positions])
//   per layer: x += out( attention( rope( qknorm( qkv( norm1(x) ))))) ;  x += proj( act( fc( norm2(x) )))
//   loss[n] = cross_entropy( head( final_norm(x) ), targets )
// dtype f32: everything f32. dtype bf16: weights and activations bf16, gradients of weights f32. fp8: as
// bf16, but the products of blocks' linear layers in training are of FP8 numbers (model/fp8.h).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/batch.h"
#include "core/tensor.h"
#include "kernels/matmul.h"
#include "model/config.h"
#include "model/memory_plan.h"
#include "model/params.h"

// What the backward pass keeps of the forward pass, per layer:
//   none: everything.   mlp: not the MLP activation and the norms' outputs, which are cheap to redo.
//   block: the layer's input only; the layer's forward runs again.
enum class Recompute : uint8_t { none, mlp, block };

// Where the weights of a unit (ParamTable) are, for who does not have all of them in one arena. A pass asks
// for each unit before it uses it: forward 0, 1, .. L + 1, and once more 0 where the head is tied to the
// embedding; backward L, .. 1.
class WeightSource {
public:
    virtual ~WeightSource() = default;
    // The unit's piece of the arena, until two other units have been asked for; that of units 0 and L + 1
    // until the other one has, or with a tied head until the end of the pass. `then`: who is asked for next;
    // -1: nobody in this pass.
    virtual Tensor weights(int64_t unit, int64_t then) = 0;
};
// Where the gradients of units go, one unit after another: L + 1, L, .. 0; unit 0 begins first where the head
// is tied to the embedding.
class GradientSink {
public:
    virtual ~GradientSink() = default;
    virtual Tensor begin(
        int64_t unit) = 0;               // f32 memory for the unit's piece of the arena, to be overwritten
    virtual void end(int64_t unit) = 0;  // it is complete
};

struct RunShape {
    int64_t num_rows = 1;  // B, largest micro-batch
    int64_t seq_len = 0;   // T
    DType dtype = DType::f32;
    MatmulMath math = MatmulMath::f32;
    bool fp8 = false;  // with dtype bf16
    Recompute recompute = Recompute::none;
    bool backward = true;  // false: evaluation only; no gradients, activations of one layer
    Device device = Device::cpu;
    bool has_params = true, has_grads = true;  // arenas of its own; else a source and a sink are needed
};

class Transformer {
public:
    // Plans, checks nothing against the machine; allocates at construction. `params` start zeroed. Some
    // scratch is per thread: the number of threads must not grow afterwards.
    Transformer(const ModelConfig& config, const RunShape& shape);
    ~Transformer();
    // The lines of this class: parameters, gradients, activations, scratch; and what the kernels keep for
    // each thread, or on a device (kernels/workspace.h). Pure: allocates nothing.
    static void plan(MemoryPlan& plan, const ModelConfig& config, const RunShape& shape);

    const ModelConfig& config() const;
    const RunShape& shape() const;
    const ParamTable& table() const;
    Tensor params() const;  // arena of shape.dtype, on shape.device; absent without has_params
    Tensor grads() const;   // arena f32; absent without backward or has_grads
    void set_weights(WeightSource* source);  // on the CPU; null: params()
    int64_t allocated_bytes() const;         // what plan() said, the kernels' own scratch aside

    // Forward and backward. Gradients of sum(losses) * dloss_scale are set (accumulate = false) or added. On
    // a device this only queues the work; from the second call of its kind on it is one graph.
    void forward_backward(const Batch& batch, float dloss_scale, bool accumulate);
    // The same of one micro-batch, on the CPU, with gradients that go where `sink` says.
    void forward_backward(const Batch& batch, float dloss_scale, GradientSink& sink);
    // Asks source and sink for what such a pass, or forward_loss(), asks for, and computes nothing: for a
    // rank that has no micro-batch while others do.
    void idle_step(GradientSink& sink);
    void idle_forward();
    // The sum of the losses over counted targets since the last call that did not accumulate: f64 [1], on
    // shape.device; and on the host, for which it waits.
    Tensor summed_loss() const;
    double total_loss() const;
    // Forward only; losses (may be absent, on the host) [N] f32 receives each token's loss, 0 where the
    // target is -1. Returns their sum.
    double forward_loss(const Batch& batch, Tensor losses = {});
    // Forward only, logits [N,V] f32 on the host: tests, goldens and small inputs.
    void forward_logits(const Batch& batch, Tensor logits);

private:
    struct State;
    std::unique_ptr<State> state_;
};
