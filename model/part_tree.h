// A binary tree over the numbers 0 .. num_parts - 1: neighbours 0 and 1, 2 and 3, ... make nodes,
// neighbouring nodes make larger ones, and what has no neighbour on its right goes up as it is. Who adds up
// along the tree gets the same bits, whoever adds what.
#pragma once
#include <cstdint>
#include <vector>

struct PartNode {  // parts [index << level, (index + 1) << level), as far as there are any
    int level = 0;
    int64_t index = 0;
    bool operator==(const PartNode&) const = default;
};

// Neighbouring nodes from left to right, none of which can be added to the next.
class PartStack {
public:
    explicit PartStack(int64_t num_parts) : num_parts_(num_parts) {}
    int64_t size() const { return static_cast<int64_t>(nodes_.size()); }
    const std::vector<PartNode>& nodes() const { return nodes_; }

    // The node that follows. add() is called each time when the last two become one.
    template <class Add>
    void push(PartNode node, const Add& add) {
        nodes_.push_back(grown(node));
        while (size() > 1 && are_one(nodes_[nodes_.size() - 2], nodes_.back())) {
            add();
            nodes_.pop_back();
            PartNode& sum = nodes_.back();
            sum = grown({sum.level + 1, sum.index / 2});
        }
    }

private:
    static bool are_one(const PartNode& left, const PartNode& right) {
        return left.level == right.level && left.index % 2 == 0 && left.index + 1 == right.index;
    }
    // Without a neighbour on its right a node is its parent.
    PartNode grown(PartNode node) const {
        while (node.index > 0 && node.index % 2 == 0 && (node.index + 1) << node.level >= num_parts_)
            node = {node.level + 1, node.index / 2};
        return node;
    }

    int64_t num_parts_;
    std::vector<PartNode> nodes_;
};
