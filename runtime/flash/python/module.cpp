// The Python door: the C interface with numpy arrays. Holds no logic of its own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "handheld/flash.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void raise_error(hh_flash_status status) {
  const nb::object type = nb::module_::import_("handheld.runtime.flash.errors").attr("FlashError");
  const nb::object error = type(hh_flash_status_name(status), hh_flash_last_error());
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

void check(hh_flash_status status) {
  if (status != HH_FLASH_OK) raise_error(status);
}

// Runs a call of the C interface without the interpreter's lock, then raises what it reports.
template <typename Call>
void check_unlocked(Call call) {
  hh_flash_status status;
  {
    const nb::gil_scoped_release unlocked;
    status = call();
  }
  check(status);
}

// An empty list is not the same as none.
const uint32_t* data_of(const Ids& ids) {
  static constexpr uint32_t none = 0;
  return ids.size() == 0 ? &none : ids.data();
}

template <typename T>
nb::object to_numpy(std::vector<T>&& values) {
  auto* owned = new std::vector<T>(std::move(values));
  const nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner).cast();
}

struct ClosePack {
  void operator()(hh_flash_pack* pack) const { hh_flash_pack_close(pack); }
};

struct CloseModel {
  void operator()(hh_flash_model* model) const { hh_flash_model_close(model); }
};

struct CloseSession {
  void operator()(hh_flash_session* session) const { hh_flash_session_close(session); }
};

class PySession {
 public:
  PySession(const hh_flash_pack* pack, const hh_flash_session_options& options, uint32_t d_model)
      : d_model_(d_model) {
    hh_flash_session* session = nullptr;
    check_unlocked([&] { return hh_flash_session_open(pack, &options, &session); });
    session_.reset(session);
  }

  nb::object ffn(uint32_t layer, const Vector& x, const std::string& mode, const std::optional<Ids>& neurons) {
    require_d_model(x);
    std::vector<float> y(d_model_);
    const hh_flash_mode native_mode = mode_of(mode);
    const uint32_t* ids = ids_of(neurons);
    const size_t count = neurons ? neurons->size() : 0;
    call([&] { return hh_flash_session_ffn(session_.get(), layer, native_mode, x.data(), ids, count, y.data()); });
    return to_numpy(std::move(y));
  }

  void prefetch(uint32_t layer, const std::optional<Vector>& x, const std::optional<Ids>& neurons) {
    if (x) require_d_model(*x);
    const uint32_t* ids = ids_of(neurons);
    const size_t count = neurons ? neurons->size() : 0;
    call([&] { return hh_flash_session_prefetch(session_.get(), layer, x ? x->data() : nullptr, ids, count); });
  }

  nb::object select(uint32_t layer, const Vector& x) {
    require_d_model(x);
    return ids([&](uint32_t* to, size_t capacity, size_t* count) {
      return hh_flash_session_select(session_.get(), layer, x.data(), to, capacity, count);
    });
  }

  nb::object resident(uint32_t layer) {
    return ids([&](uint32_t* to, size_t capacity, size_t* count) {
      return hh_flash_session_resident(session_.get(), layer, to, capacity, count);
    });
  }

  // Takes no lock: it is for another thread.
  void cancel() { hh_flash_session_cancel(session_.get()); }
  void resume() {
    call([&] { return hh_flash_session_resume(session_.get()); });
  }
  void reset() {
    call([&] { return hh_flash_session_reset(session_.get()); });
  }

  hh_flash_stats stats() {
    hh_flash_stats stats{};
    stats.struct_bytes = sizeof stats;
    call([&] { return hh_flash_session_stats(session_.get(), &stats); });
    return stats;
  }

 private:
  // A session serves one call at a time; Python threads wait for each other.
  template <typename Call>
  void call(Call body) {
    check_unlocked([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return body();
    });
  }

  template <typename Get>
  nb::object ids(Get get) {
    size_t count = 0;
    std::vector<uint32_t> found;
    call([&] { return get(nullptr, 0, &count); });
    found.resize(count);
    call([&] { return get(found.data(), found.size(), &count); });
    return to_numpy(std::move(found));
  }

  void require_d_model(const Vector& x) const {
    if (x.size() == d_model_) return;
    throw nb::value_error(("x has " + std::to_string(x.size()) + " values; d_model is " + std::to_string(d_model_) + ".").c_str());
  }

  static hh_flash_mode mode_of(const std::string& name) {
    if (name == "dense") return HH_FLASH_DENSE;
    if (name == "exact") return HH_FLASH_EXACT;
    if (name == "selected") return HH_FLASH_SELECTED;
    throw nb::value_error(("There is no mode \"" + name + "\": use dense, exact or selected.").c_str());
  }

  static const uint32_t* ids_of(const std::optional<Ids>& neurons) { return neurons ? data_of(*neurons) : nullptr; }

  uint32_t d_model_;
  std::mutex mutex_;
  std::unique_ptr<hh_flash_session, CloseSession> session_;
};

class PyModel {
 public:
  PyModel(const hh_flash_pack* pack, const hh_flash_model_options& options, uint32_t vocab) : vocab_(vocab) {
    hh_flash_model* model = nullptr;
    check_unlocked([&] { return hh_flash_model_open(pack, &options, &model); });
    model_.reset(model);
  }

  nb::object decode(const Ids& tokens) {
    std::vector<float> logits(vocab_);
    call([&] { return hh_flash_model_decode(model_.get(), data_of(tokens), tokens.size(), logits.data()); });
    return to_numpy(std::move(logits));
  }

  nb::object decode_all(const Ids& tokens) {
    std::vector<float> logits(tokens.size() * vocab_);
    call([&] { return hh_flash_model_decode_all(model_.get(), data_of(tokens), tokens.size(), logits.data()); });
    return to_numpy(std::move(logits)).attr("reshape")(tokens.size(), vocab_);
  }

  nb::object generate(const Ids& prompt, size_t max_new) {
    std::vector<uint32_t> tokens;
    call([&] {
      return hh_flash_model_generate(model_.get(), data_of(prompt), prompt.size(), max_new, append, &tokens);
    });
    return to_numpy(std::move(tokens));
  }

  nb::object resident(uint32_t layer) {
    std::vector<uint32_t> ids;
    call([&] {
      size_t count = 0;
      const hh_flash_status status = hh_flash_model_resident(model_.get(), layer, nullptr, 0, &count);
      if (status != HH_FLASH_OK) return status;
      ids.resize(count);
      return hh_flash_model_resident(model_.get(), layer, ids.data(), ids.size(), &count);
    });
    return to_numpy(std::move(ids));
  }

  void truncate(size_t tokens) {
    call([&] { return hh_flash_model_truncate(model_.get(), tokens); });
  }
  // Takes no lock: it is for another thread.
  void cancel() { hh_flash_model_cancel(model_.get()); }
  void resume() {
    call([&] { return hh_flash_model_resume(model_.get()); });
  }
  void reset() {
    call([&] { return hh_flash_model_reset(model_.get()); });
  }

  hh_flash_decode_stats stats() {
    hh_flash_decode_stats stats{};
    stats.struct_bytes = sizeof stats;
    call([&] { return hh_flash_model_stats(model_.get(), &stats); });
    return stats;
  }

 private:
  template <typename Call>
  void call(Call body) {
    check_unlocked([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return body();
    });
  }

  // No exception may cross the C interface; out of memory, the text ends there.
  static int append(uint32_t token, void* tokens) noexcept {
    try {
      static_cast<std::vector<uint32_t>*>(tokens)->push_back(token);
      return 0;
    } catch (...) {
      return 1;
    }
  }

  uint32_t vocab_;
  std::mutex mutex_;
  std::unique_ptr<hh_flash_model, CloseModel> model_;
};

class PyPack {
 public:
  PyPack(const std::string& path, bool direct_io) {
    hh_flash_pack* pack = nullptr;
    check_unlocked([&] { return hh_flash_pack_open(path.c_str(), direct_io ? HH_FLASH_DIRECT_IO : 0, &pack); });
    pack_.reset(pack);
  }

  hh_flash_info info() const {
    hh_flash_info info{};
    info.struct_bytes = sizeof info;
    check(hh_flash_pack_info(pack_.get(), &info));
    return info;
  }

  void verify() const {
    check_unlocked([&] { return hh_flash_pack_verify(pack_.get()); });
  }

  uint64_t floor_bytes(const hh_flash_session_options& options) const {
    uint64_t floor_bytes = 0;
    check(hh_flash_pack_floor(pack_.get(), &options, &floor_bytes));
    return floor_bytes;
  }

  std::unique_ptr<PySession> session(const hh_flash_session_options& options) const {
    return std::make_unique<PySession>(pack_.get(), options, info().d_model);
  }

  hh_flash_model_info model_info() const {
    hh_flash_model_info info{};
    info.struct_bytes = sizeof info;
    check(hh_flash_pack_model_info(pack_.get(), &info));
    return info;
  }

  uint64_t model_floor_bytes(const hh_flash_model_options& options) const {
    uint64_t floor_bytes = 0;
    check(hh_flash_model_floor(pack_.get(), &options, &floor_bytes));
    return floor_bytes;
  }

  std::unique_ptr<PyModel> model(const hh_flash_model_options& options) const {
    return std::make_unique<PyModel>(pack_.get(), options, model_info().vocab);
  }

 private:
  std::unique_ptr<hh_flash_pack, ClosePack> pack_;
};

hh_flash_session_options default_options() {
  hh_flash_session_options options;
  hh_flash_session_options_init(&options);
  return options;
}

hh_flash_model_options default_model_options() {
  hh_flash_model_options options;
  hh_flash_model_options_init(&options);
  return options;
}

}  // namespace

NB_MODULE(_flash, module) {
  nb::class_<hh_flash_info>(module, "Info")
      .def_ro("layers", &hh_flash_info::layers)
      .def_ro("d_model", &hh_flash_info::d_model)
      .def_ro("d_ff", &hh_flash_info::d_ff)
      .def_ro("activation", &hh_flash_info::activation)
      .def_prop_ro("gated", [](const hh_flash_info& info) { return info.gated != 0; })
      .def_ro("dtype", &hh_flash_info::dtype)
      .def_ro("group_size", &hh_flash_info::group_size)
      .def_ro("selector", &hh_flash_info::selector)
      .def_prop_ro("direct_io", [](const hh_flash_info& info) { return info.direct_io != 0; })
      .def_ro("read_alignment_bytes", &hh_flash_info::read_alignment_bytes)
      .def_ro("bundle_bytes", &hh_flash_info::bundle_bytes)
      .def_ro("file_bytes", &hh_flash_info::file_bytes)
      .def_ro("selector_bytes", &hh_flash_info::selector_bytes)
      .def_prop_ro("identity", [](const hh_flash_info& info) { return nb::bytes(info.identity, sizeof info.identity); });

  nb::class_<hh_flash_stats>(module, "Stats")
      .def_ro("kernels", &hh_flash_stats::kernels)
      .def_ro("budget_bytes", &hh_flash_stats::budget_bytes)
      .def_ro("held_bytes", &hh_flash_stats::held_bytes)
      .def_ro("held_peak_bytes", &hh_flash_stats::held_peak_bytes)
      .def_ro("table_rows", &hh_flash_stats::table_rows)
      .def_ro("layers_computed", &hh_flash_stats::layers_computed)
      .def_ro("reads", &hh_flash_stats::reads)
      .def_ro("bytes_read", &hh_flash_stats::bytes_read)
      .def_ro("bytes_wanted", &hh_flash_stats::bytes_wanted)
      .def_ro("neurons_selected", &hh_flash_stats::neurons_selected)
      .def_ro("cache_hits", &hh_flash_stats::cache_hits)
      .def_ro("neurons_loaded", &hh_flash_stats::neurons_loaded)
      .def_ro("neurons_streamed", &hh_flash_stats::neurons_streamed)
      .def_ro("neurons_evicted", &hh_flash_stats::neurons_evicted)
      .def_ro("neurons_computed", &hh_flash_stats::neurons_computed)
      .def_ro("prefetched", &hh_flash_stats::prefetched)
      .def_ro("wait_ns", &hh_flash_stats::wait_ns)
      .def_ro("read_ns", &hh_flash_stats::read_ns)
      .def_ro("busy_ns", &hh_flash_stats::busy_ns)
      .def_ro("table_ns", &hh_flash_stats::table_ns)
      .def_ro("select_ns", &hh_flash_stats::select_ns)
      .def_ro("compute_ns", &hh_flash_stats::compute_ns);

  nb::class_<hh_flash_session_options>(module, "Options")
      .def("__init__", [](hh_flash_session_options* options) { new (options) auto(default_options()); })
      .def_rw("techniques", &hh_flash_session_options::techniques)
      .def_rw("budget_bytes", &hh_flash_session_options::budget_bytes)
      .def_rw("reader_threads", &hh_flash_session_options::reader_threads)
      .def_rw("compute_threads", &hh_flash_session_options::compute_threads)
      .def_rw("window_tokens", &hh_flash_session_options::window_tokens)
      .def_rw("pinned_neurons", &hh_flash_session_options::pinned_neurons)
      .def_rw("merge_gap_bytes", &hh_flash_session_options::merge_gap_bytes)
      .def_rw("chunk_bytes", &hh_flash_session_options::chunk_bytes)
      .def_rw("kernels", &hh_flash_session_options::kernels)
      .def_rw("selector", &hh_flash_session_options::selector)
      .def_rw("select_share", &hh_flash_session_options::select_share)
      .def_rw("miss_weight", &hh_flash_session_options::miss_weight);

  nb::class_<hh_flash_model_info>(module, "ModelInfo")
      .def_ro("vocab", &hh_flash_model_info::vocab)
      .def_ro("max_positions", &hh_flash_model_info::max_positions)
      .def_ro("heads", &hh_flash_model_info::heads)
      .def_ro("kv_heads", &hh_flash_model_info::kv_heads)
      .def_ro("head_dim", &hh_flash_model_info::head_dim)
      .def_prop_ro("eos", [](const hh_flash_model_info& info) {
        return std::vector<uint32_t>(info.eos, info.eos + info.eos_count);
      })
      .def_ro("weights_bytes", &hh_flash_model_info::weights_bytes);

  nb::class_<hh_flash_decode_stats>(module, "ModelStats")
      .def_ro("position", &hh_flash_decode_stats::position)
      .def_ro("tokens", &hh_flash_decode_stats::tokens)
      .def_ro("weights_bytes", &hh_flash_decode_stats::weights_bytes)
      .def_ro("kv_bytes", &hh_flash_decode_stats::kv_bytes)
      .def_ro("total_ns", &hh_flash_decode_stats::total_ns)
      .def_ro("attention_ns", &hh_flash_decode_stats::attention_ns)
      .def_ro("head_ns", &hh_flash_decode_stats::head_ns)
      .def_ro("overhead_ns", &hh_flash_decode_stats::overhead_ns)
      .def_ro("session", &hh_flash_decode_stats::session);

  nb::class_<hh_flash_model_options>(module, "ModelOptions")
      .def("__init__", [](hh_flash_model_options* options) { new (options) auto(default_model_options()); })
      .def_rw("mode", &hh_flash_model_options::mode)
      .def_rw("context_tokens", &hh_flash_model_options::context_tokens)
      .def_rw("kv_dtype", &hh_flash_model_options::kv_dtype)
      .def_rw("read_ahead", &hh_flash_model_options::read_ahead)
      .def_rw("prefetch", &hh_flash_model_options::prefetch)
      .def_rw("session", &hh_flash_model_options::session);

  nb::class_<PySession>(module, "Session")
      .def("ffn", &PySession::ffn, "layer"_a, "x"_a, "mode"_a, "neurons"_a = nb::none())
      .def("prefetch", &PySession::prefetch, "layer"_a, "x"_a = nb::none(), "neurons"_a = nb::none())
      .def("select", &PySession::select, "layer"_a, "x"_a)
      .def("resident", &PySession::resident, "layer"_a)
      .def("cancel", &PySession::cancel)
      .def("resume", &PySession::resume)
      .def("reset", &PySession::reset)
      .def("stats", &PySession::stats);

  nb::class_<PyModel>(module, "Model")
      .def("decode", &PyModel::decode, "tokens"_a)
      .def("decode_all", &PyModel::decode_all, "tokens"_a)
      .def("generate", &PyModel::generate, "prompt"_a, "max_new"_a)
      .def("resident", &PyModel::resident, "layer"_a)
      .def("truncate", &PyModel::truncate, "tokens"_a)
      .def("cancel", &PyModel::cancel)
      .def("resume", &PyModel::resume)
      .def("reset", &PyModel::reset)
      .def("stats", &PyModel::stats);

  nb::class_<PyPack>(module, "Pack")
      .def(nb::init<const std::string&, bool>(), "path"_a, "direct_io"_a = true)
      .def_prop_ro("info", &PyPack::info)
      .def("verify", &PyPack::verify)
      .def("floor_bytes", &PyPack::floor_bytes, "options"_a)
      .def("session", &PyPack::session, "options"_a)
      .def_prop_ro("model_info", &PyPack::model_info)
      .def("model_floor_bytes", &PyPack::model_floor_bytes, "options"_a)
      .def("model", &PyPack::model, "options"_a);
}
