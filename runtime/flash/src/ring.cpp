#include "ring.h"

// Android's filter of system calls ends an app that asks for an io_uring.
#if defined(__linux__) && !defined(__ANDROID__) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/syscall.h>
#endif
#endif

// IORING_FEAT_CUR_PERSONALITY is of the release that has IORING_OP_READ.
#if defined(IORING_FEAT_CUR_PERSONALITY) && defined(__NR_io_uring_setup)

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace handheld::flash {
namespace {

class Mapping {
 public:
  Mapping(int descriptor, uint64_t bytes, uint64_t what) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, static_cast<off_t>(what));
  }
  ~Mapping() {
    if (valid()) munmap(memory_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  bool valid() const { return memory_ != MAP_FAILED; }
  template <typename T>
  T* at(uint32_t offset) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(memory_) + offset);
  }

 private:
  void* memory_;
  uint64_t bytes_;
};

class UringRing : public Ring {
 public:
  // `descriptor` is owned.
  UringRing(int descriptor, const io_uring_params& params)
      : descriptor_(descriptor),
        rings_(descriptor, ring_bytes(params), IORING_OFF_SQ_RING),
        entries_(descriptor, params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES) {
    if (!valid()) return;
    submit_tail_ = rings_.at<uint32_t>(params.sq_off.tail);
    submit_mask_ = *rings_.at<uint32_t>(params.sq_off.ring_mask);
    done_head_ = rings_.at<uint32_t>(params.cq_off.head);
    done_tail_ = rings_.at<uint32_t>(params.cq_off.tail);
    done_mask_ = *rings_.at<uint32_t>(params.cq_off.ring_mask);
    done_ = rings_.at<io_uring_cqe>(params.cq_off.cqes);
    // Entries are used in their order.
    uint32_t* const order = rings_.at<uint32_t>(params.sq_off.array);
    for (uint32_t i = 0; i < params.sq_entries; ++i) order[i] = i;
  }
  ~UringRing() override { ::close(descriptor_); }

  bool valid() const { return rings_.valid() && entries_.valid(); }

  void prepare(int descriptor, uint64_t offset, uint8_t* to, uint32_t bytes, uint64_t tag) override {
    io_uring_sqe& entry = entries_.at<io_uring_sqe>(0)[(*submit_tail_ + prepared_) & submit_mask_];
    std::memset(&entry, 0, sizeof entry);
    entry.opcode = IORING_OP_READ;
    entry.fd = descriptor;
    entry.off = offset;
    entry.addr = reinterpret_cast<uint64_t>(to);
    entry.len = bytes;
    entry.user_data = tag;
    ++prepared_;
  }

  uint32_t submit(uint32_t wanted) override {
    __atomic_store_n(submit_tail_, *submit_tail_ + prepared_, __ATOMIC_RELEASE);
    uint32_t left = prepared_;
    prepared_ = 0;
    while (left != 0 || ready() < wanted) {
      const long begun = syscall(__NR_io_uring_enter, descriptor_, left, wanted, IORING_ENTER_GETEVENTS, nullptr, 0);
      if (begun >= 0) {
        left -= static_cast<uint32_t>(begun);
      } else if (errno != EINTR) {
        __atomic_store_n(submit_tail_, *submit_tail_ - left, __ATOMIC_RELEASE);
        return left;
      }
    }
    return 0;
  }

  bool pop(uint64_t& tag, int64_t& got) override {
    if (ready() == 0) return false;
    const io_uring_cqe& entry = done_[*done_head_ & done_mask_];
    tag = entry.user_data;
    got = entry.res;
    __atomic_store_n(done_head_, *done_head_ + 1, __ATOMIC_RELEASE);
    return true;
  }

 private:
  // Both queues lie in one mapping.
  static uint64_t ring_bytes(const io_uring_params& params) {
    const uint64_t submissions = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    const uint64_t completions = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
    return submissions > completions ? submissions : completions;
  }
  uint32_t ready() const { return __atomic_load_n(done_tail_, __ATOMIC_ACQUIRE) - *done_head_; }

  const int descriptor_;
  const Mapping rings_;
  const Mapping entries_;
  uint32_t* submit_tail_ = nullptr;
  uint32_t submit_mask_ = 0;
  uint32_t* done_head_ = nullptr;
  uint32_t* done_tail_ = nullptr;
  uint32_t done_mask_ = 0;
  io_uring_cqe* done_ = nullptr;
  uint32_t prepared_ = 0;
};

}  // namespace

std::unique_ptr<Ring> Ring::open(uint32_t depth) {
  io_uring_params params{};
  const long descriptor = syscall(__NR_io_uring_setup, depth, &params);
  if (descriptor < 0) return nullptr;
  auto ring = std::make_unique<UringRing>(static_cast<int>(descriptor), params);
  constexpr uint32_t needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_CUR_PERSONALITY;
  if (!ring->valid() || (params.features & needed) != needed) return nullptr;
  return ring;
}

}  // namespace handheld::flash

#else

namespace handheld::flash {
std::unique_ptr<Ring> Ring::open(uint32_t) { return nullptr; }
}  // namespace handheld::flash

#endif
