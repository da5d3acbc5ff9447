// ExecuTorch's kernel handheld::flash_ffn.out: a feed-forward layer of a flash pack, x [..., d_model] -> the same.
//
//   flash_ffn.out(Tensor x, str pack, int layer, str mode, int budget_bytes, *, Tensor(a!) out) -> Tensor(a!)
//
// Loading the library registers it. Kernels have no state of their own, so sessions stay open until
// handheld_flash_close_sessions.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>

#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "sessions.h"

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;
using handheld::flash::doors::SharedSession;

struct Held {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<SharedSession>, std::less<>> sessions;
};

Held& held() {
  static Held all;
  return all;
}

std::shared_ptr<SharedSession> session_of(std::string_view pack, int64_t budget_bytes) {
  const std::lock_guard<std::mutex> lock(held().mutex);
  // Asked each time, so that a node with another budget is refused.
  std::shared_ptr<SharedSession> session = SharedSession::open(pack, budget_bytes);
  held().sessions[std::string(pack)] = session;
  return session;
}

Tensor& flash_ffn_out(KernelRuntimeContext& context, const Tensor& x, std::string_view pack, int64_t layer,
                      std::string_view mode, int64_t budget_bytes, Tensor& out) {
  try {
    const std::shared_ptr<SharedSession> session = session_of(pack, budget_bytes);
    const int64_t last = x.dim() == 0 ? 0 : x.size(x.dim() - 1);
    const bool fits = x.scalar_type() == ScalarType::Float && out.scalar_type() == ScalarType::Float &&
                      last == static_cast<int64_t>(session->d_model()) &&
                      executorch::runtime::tensor_is_default_dim_order(x) &&
                      executorch::runtime::tensors_have_same_dim_order(x, out);
    ET_KERNEL_CHECK_MSG(context, fits, InvalidArgument, out,
                        "handheld::flash_ffn takes contiguous fp32 tensors of a last dimension of %zu",
                        session->d_model());
    ET_KERNEL_CHECK(context, executorch::runtime::resize_tensor(out, x.sizes()) == Error::Ok, InvalidArgument, out);
    session->feed_forward(layer, handheld::flash::doors::mode_of(mode), x.const_data_ptr<float>(),
                          static_cast<size_t>(x.numel()) / session->d_model(), out.mutable_data_ptr<float>());
  } catch (const std::exception& error) {
    ET_LOG(Error, "handheld::flash_ffn: %s", error.what());
    context.fail(Error::InvalidArgument);
  }
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(handheld, "flash_ffn.out", flash_ffn_out);

// Closes the sessions that no call is using; the next call opens its own again. Thread-safe.
extern "C" HH_FLASH_API void handheld_flash_close_sessions(void) {
  const std::lock_guard<std::mutex> lock(held().mutex);
  held().sessions.clear();
}
