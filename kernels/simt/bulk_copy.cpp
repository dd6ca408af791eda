// Bulk copies between global and shared memory (hopper.h). They are carried out at random moments by nobody
// in particular: ThreadSanitizer sees one more thread.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/simt/hopper.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/scheduler.h"

namespace simt {
namespace {

struct Transfer {
    TensorMap map;
    int at[5];
    char* shared;
    uint64_t* barrier;  // null: a store
    int thread, group;  // of a store
    Site site;
};
std::vector<Transfer> under_way;
int num_committed[kMaxThreads];
void* copier = nullptr;  // ThreadSanitizer's fiber

// The part of a box's row `r` that lies in the tensor: `count` elements from the row's `first` on, at
// `global`.
struct RowInside {
    int64_t first, count;
    char* global;
};
RowInside row_inside(const TensorMap& map, const int* at, int64_t r) {
    const int64_t first = std::max<int64_t>(0, -at[0]);
    const int64_t end = std::min<int64_t>(map.box[0], map.dims[0] - at[0]);
    char* global = static_cast<char*>(map.data) + (at[0] + first) * map.element_bytes;
    bool inside = first < end;
    for (int d = 1; d < map.rank; ++d) {
        const int64_t i = at[d] + r % map.box[d];
        r /= map.box[d];
        inside = inside && i >= 0 && i < map.dims[d];
        global += i * map.strides_bytes[d];
    }
    return {first, inside ? end - first : 0, global};
}
int64_t num_rows(const TensorMap& map) { return box_bytes(map) / (int64_t{map.box[0]} * map.element_bytes); }

void check_box(const TensorMap& map, const int* at, const void* shared, const Site& site) {
    const bool one_dimension = map.rank == 1 && map.element_bytes == 1;  // without a tensor map
    if (reinterpret_cast<uintptr_t>(map.data) % 16 != 0) {
        violation(&site, "%s: global address %p is not aligned to 16 bytes", site.what, map.data);
    }
    if (reinterpret_cast<uintptr_t>(shared) % (one_dimension ? 16 : 128) != 0) {
        violation(&site, "%s: shared address %p is not aligned to %d bytes", site.what, shared,
                  one_dimension ? 16 : 128);
    }
    const int64_t inner_bytes = int64_t{map.box[0]} * map.element_bytes;
    if (inner_bytes % 16 != 0 || (map.swizzle_bytes > 0 && inner_bytes > map.swizzle_bytes)) {
        violation(&site, "%s: the box's rows have %lld bytes, the swizzle %d", site.what,
                  static_cast<long long>(inner_bytes), map.swizzle_bytes);
    }
    for (int d = 0; d < map.rank; ++d) {
        const int64_t stride = d == 0 ? map.element_bytes : map.strides_bytes[d];
        if (d > 0 && stride % 16 != 0)
            violation(&site, "%s: stride %d is not a multiple of 16 bytes", site.what, d);
        if (!one_dimension && map.box[d] > 256)
            violation(&site, "%s: the box has %d rows", site.what, map.box[d]);
    }
    // A map may say more than there is, as on a GPU; what is copied must be there.
    for (int64_t r = 0; r < num_rows(map); ++r) {
        const RowInside row = row_inside(map, at, r);
        const size_t bytes = static_cast<size_t>(row.count * map.element_bytes);
        if (row.count == 0 || is_device_memory(row.global, bytes)) continue;
        violation(&site, "%s: the box's %zu bytes at %p are not in device memory", site.what, bytes,
                  static_cast<void*>(row.global));
    }
    if (!is_shared(shared) || !is_shared(static_cast<const char*>(shared) + box_bytes(map) - 1)) {
        violation(&site, "%s: %lld bytes at %p are not in shared memory", site.what,
                  static_cast<long long>(box_bytes(map)), shared);
    }
}

void carry_out(const Transfer& transfer) {
    const TensorMap& map = transfer.map;
    const size_t element = static_cast<size_t>(map.element_bytes),
                 row_bytes = static_cast<size_t>(map.box[0]) * element;
    const std::unique_ptr<char[]> row(new char[row_bytes]);
    for (int64_t r = 0; r < num_rows(map); ++r) {
        const RowInside inside = row_inside(map, transfer.at, r);
        const size_t valid = static_cast<size_t>(inside.count) * element;
        char* const part = row.get() + static_cast<size_t>(inside.first) * element;
        char* const shared = transfer.shared + r * static_cast<int64_t>(row_bytes);
        const auto unit = [&](size_t offset) {  // where 16 bytes of the row lie
            const uint32_t at = shared_offset(shared + offset);
            const uint32_t turn =
                map.swizzle_bytes ? (at >> 7 & (static_cast<uint32_t>(map.swizzle_bytes) / 16 - 1)) << 4 : 0;
            return shared + offset + static_cast<int64_t>(at ^ turn) - at;
        };
        if (transfer.barrier) {
            std::memset(row.get(), 0, row_bytes);
            if (valid > 0) std::memcpy(part, inside.global, valid);
            for (size_t offset = 0; offset < row_bytes; offset += 16)
                std::memcpy(unit(offset), row.get() + offset, 16);
        } else {
            for (size_t offset = 0; offset < row_bytes; offset += 16)
                std::memcpy(row.get() + offset, unit(offset), 16);
            if (valid > 0) std::memcpy(inside.global, part, valid);
        }
    }
}

void complete(size_t index) {
    const Transfer transfer = under_way[index];
    {
        const OwnAccesses own;
        under_way.erase(under_way.begin() + static_cast<std::ptrdiff_t>(index));
    }
    num_bulk_copies = static_cast<int>(under_way.size());
    if (transfer.barrier) allow(transfer.shared, static_cast<size_t>(box_bytes(transfer.map)));
    void* const before = current_tsan_fiber();
    switch_tsan_fiber(copier);
    acquire(transfer.shared);
    carry_out(transfer);
    if (transfer.barrier) {
        bytes_have_come(transfer.barrier, box_bytes(transfer.map), transfer.site);
    } else {
        release(transfer.shared + 1);
    }
    switch_tsan_fiber(before);
}

void issue(const Transfer& transfer) {
    const OwnAccesses own;
    release(transfer.shared);
    under_way.push_back(transfer);
    num_bulk_copies = static_cast<int>(under_way.size());
}

}  // namespace

int num_bulk_copies = 0;

void start_bulk_copies() {
    if (kTsan && !copier) copier = create_tsan_fiber("bulk copies");
}

void complete_a_bulk_copy() {
    complete(order() == Order::random ? random_below(under_way.size()) : under_way.size() - 1);
}

void end_block_copies() {
    for (size_t i = under_way.size(); i-- > 0;) {
        if (under_way[i].barrier) {
            violation(&under_way[i].site, "%s was not waited for before the block's end",
                      under_way[i].site.what);
        }
        complete(i);
    }
    std::memset(num_committed, 0, sizeof num_committed);
}

int64_t box_bytes(const TensorMap& map) {
    int64_t bytes = map.element_bytes;
    for (int d = 0; d < map.rank; ++d) bytes *= map.box[d];
    return bytes;
}
TensorMap contiguous_bytes(const void* global, int bytes) {
    TensorMap map;
    map.data = const_cast<void*>(global);
    map.dims[0] = map.box[0] = bytes;
    return map;
}

void issue_load(void* shared, const TensorMap& map, const int* at, uint64_t* barrier, const Site& site) {
    check_box(map, at, shared, site);
    forbid(shared, static_cast<size_t>(box_bytes(map)));
    undefine(shared, static_cast<size_t>(box_bytes(map)));
    Transfer transfer{map, {}, static_cast<char*>(shared), barrier, 0, 0, site};
    for (int d = 0; d < map.rank; ++d) transfer.at[d] = at[d];
    issue(transfer);
}
void issue_store(const TensorMap& map, const int* at, const void* shared, const Site& site) {
    check_box(map, at, shared, site);
    const int thread = current_thread();
    Transfer transfer{
        map, {}, static_cast<char*>(const_cast<void*>(shared)), nullptr, thread, num_committed[thread], site};
    for (int d = 0; d < map.rank; ++d) transfer.at[d] = at[d];
    issue(transfer);
}

void store_commit() { ++num_committed[current_thread()]; }
void store_wait(int pending_groups) {
    const int thread = current_thread();
    for (size_t i = under_way.size(); i-- > 0;) {
        const Transfer& transfer = under_way[i];
        if (transfer.barrier || transfer.thread != thread) continue;
        if (transfer.group >= num_committed[thread] - pending_groups) continue;
        char* const shared = transfer.shared;
        complete(i);
        acquire(shared + 1);
    }
}

}  // namespace simt
