// A device of torch that computes on the host but, as a GPU does, refuses to mix its tensors with
// the host's. What it has no kernel for is handed to the host's one, after a look at the arguments.

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {place, place, &std::free, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream other) const override { return other; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const { return true; }  // before 2.7 no override
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

void refuse(const std::string& what) { TORCH_CHECK(false, what, " mixes tensors of device and host"); }

// The same memory as a tensor of the host.
Tensor on_host(const Tensor& x) {
  if (x.device().is_cpu()) return x;
  const auto options = x.options().device(at::kCPU).requires_grad(false);
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [x](void*) {}, options);
}
Tensor checked(const Tensor& x, const char* what) {
  if (x.device() != DEVICE) refuse(what);
  return on_host(x);
}
optional<Tensor> checked(const optional<Tensor>& x, const char* what) {
  if (!x.has_value() || !x->defined()) return std::nullopt;
  return checked(*x, what);
}
Tensor back(const Tensor& x) { return x.defined() ? x.to(DEVICE) : x; }

Tensor empty(IntArrayRef size, optional<at::ScalarType> type, optional<at::Layout>,
             optional<at::Device>, optional<bool>, optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}
Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> type,
                     optional<at::Layout>, optional<at::Device>, optional<bool>) {
  const auto dtype = c10::dtype_or_default(type);
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, dtype);
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}
Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}
const Tensor& resize(const Tensor& x, IntArrayRef size, optional<at::MemoryFormat>) {
  x.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  const size_t wanted = (x.numel() + x.storage_offset()) * x.itemsize();
  if (x.storage().nbytes() < wanted) {
    auto place = memory.allocate(wanted);
    if (x.storage().nbytes()) std::memcpy(place.get(), x.storage().data(), x.storage().nbytes());
    x.storage().set_data_ptr_noswap(std::move(place));
    x.storage().unsafeGetStorageImpl()->set_nbytes(wanted);
  }
  return x;
}
Tensor& set_part(Tensor& x, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* impl = x.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(storage);
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return x;
}
Tensor& set_whole(Tensor& x, at::Storage storage) {
  const auto size = static_cast<int64_t>(storage.nbytes() / x.itemsize());
  return set_part(x, std::move(storage), 0, {size}, {1});
}

// Torch has no fallback for these two: it leaves convolutions to the device, and does not say that
// normalisation changes its statistics in place.
Tensor convolve(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias,
                IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool transposed,
                IntArrayRef more, int64_t groups) {
  const char* what = "convolution";
  return back(at::convolution(checked(x, what), checked(weight, what), checked(bias, what), stride,
                              padding, dilation, transposed, more, groups));
}
std::tuple<Tensor, Tensor, Tensor> convolve_back(const Tensor& gradient, const Tensor& x,
                                                 const Tensor& weight, IntArrayRef stride,
                                                 IntArrayRef padding, IntArrayRef dilation,
                                                 bool transposed, IntArrayRef more, int64_t groups,
                                                 std::array<bool, 3> mask) {
  const char* what = "convolution_backward";
  const std::vector<int64_t> bias{gradient.size(1)};
  auto [a, b, c] = at::convolution_backward(
      checked(gradient, what), checked(x, what), checked(weight, what), at::OptionalIntArrayRef(bias),
      stride, padding, dilation, transposed, more, groups, mask);
  return {back(a), back(b), back(c)};
}
std::tuple<Tensor, Tensor, Tensor> normalize(const Tensor& x, const optional<Tensor>& weight,
                                             const optional<Tensor>& bias,
                                             const optional<Tensor>& mean,
                                             const optional<Tensor>& variance, bool train,
                                             double momentum, double eps) {
  const char* what = "batch_norm";
  auto [a, b, c] = at::native_batch_norm(checked(x, what), checked(weight, what),
                                         checked(bias, what), checked(mean, what),
                                         checked(variance, what), train, momentum, eps);
  return {back(a), back(b), back(c)};
}

// A GPU's tensors take lists of indices of the host.
const std::set<std::string> INDEXING = {"aten::index.Tensor_out", "aten::_index_put_impl_"};

void compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto name = c10::toString(op.schema().operator_name());
  const bool indexing = INDEXING.count(name);
  bool host = false, here = false;
  auto look = [&](const Tensor& x) {
    if (!x.defined()) return;
    here = here || x.device() == DEVICE;
    host = host || (x.device() != DEVICE && x.dim() > 0);
  };
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    if (!value.isList() || indexing) continue;
    for (const c10::IValue& part : value.toListRef()) {
      if (part.isTensor()) look(part.toTensor());
    }
  }
  if (host && (here || indexing)) refuse(name);
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("convolution_overrideable", convolve);
  m.impl("convolution_backward_overrideable", convolve_back);
  m.impl("native_batch_norm", normalize);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>());
}
