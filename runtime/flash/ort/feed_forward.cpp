// ONNX Runtime's custom op handheld::FlashFeedForward: a feed-forward layer of a flash pack, x [..., d_model] -> the same.
//
//   attributes  pack (string), layer (int), mode (string: dense, exact, selected), budget_bytes (int)
//
// An app loads the library with RegisterCustomOpsLibrary. The newest interface that the headers know is asked of the
// runtime, so headers may be older than the runtime.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sessions.h"

namespace {

using handheld::flash::doors::SharedSession;

// Runs a body, and turns what it throws into a status.
template <typename Body>
OrtStatusPtr guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    const std::string message = std::string("FlashFeedForward: ") + error.what();
    return Ort::GetApi().CreateStatus(ORT_FAIL, message.c_str());
  }
}

class Kernel {
 public:
  explicit Kernel(Ort::ConstKernelInfo info)
      : layer_(info.GetAttribute<int64_t>("layer")),
        mode_(handheld::flash::doors::mode_of(info.GetAttribute<std::string>("mode"))),
        session_(SharedSession::open(info.GetAttribute<std::string>("pack"),
                                     info.GetAttribute<int64_t>("budget_bytes"))) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) noexcept {
    return guarded([&] {
      const Ort::KernelContext context(raw);
      const Ort::ConstValue x = context.GetInput(0);
      const std::vector<int64_t> shape = x.GetTensorTypeAndShapeInfo().GetShape();
      const int64_t last = shape.empty() ? 0 : shape.back();
      if (last != static_cast<int64_t>(session_->d_model())) {
        throw std::runtime_error("the last dimension of x is " + std::to_string(last) + ", the pack's d_model " +
                                 std::to_string(session_->d_model()) + ".");
      }
      Ort::UnownedValue y = context.GetOutput(0, shape);
      const size_t tokens = x.GetTensorTypeAndShapeInfo().GetElementCount() / session_->d_model();
      session_->feed_forward(layer_, mode_, x.GetTensorData<float>(), tokens, y.GetTensorMutableData<float>());
    });
  }

 private:
  int64_t layer_;
  hh_flash_mode mode_;
  std::shared_ptr<SharedSession> session_;
};

struct Op : Ort::CustomOpBase<Op, Kernel, true> {
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return guarded([&] { *kernel = new Kernel(Ort::ConstKernelInfo(info)); });
  }
  const char* GetName() const { return "FlashFeedForward"; }
  size_t GetInputTypeCount() const { return 1; }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  static OrtStatusPtr InferOutputShape(Ort::ShapeInferContext& context) {
    return guarded([&] { context.SetOutputShape(0, context.GetInputShape(0)).release(); });
  }
};

}  // namespace

extern "C" HH_FLASH_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "handheld's ops were built for a newer ONNX Runtime than this one.");
  }
  Ort::InitApi(api);
  return guarded([&] {
    // Both outlive every session.
    static const Op op;
    static const Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("handheld");
      made.Add(&op);
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
  });
}
