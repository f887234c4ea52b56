// One imaginary CUDA device for PyTorch's CPU build: what autograd asks of a device, without memory and kernels.
//
// Tensors on it come from FakeTensorMode, which knows shapes, dtypes and devices, and no numbers. A forward needs
// nothing else. A backward asks for the device's guard and its current stream, and ends the process where there are
// none; memory, transfers and kernels it leaves to the tensors.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {

// Asked before anything is done with a device of this kind. PyTorch finds the class by its name.
class CUDAHooks final : public CUDAHooksInterface {
 public:
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

} // namespace at

namespace {

using c10::Device;
using c10::DeviceType;
using c10::Stream;

// A guard that switches nothing: there is one device, and it has one stream.
class OneDeviceGuard final : public c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
 public:
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return getDevice(); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
};

C10_REGISTER_GUARD_IMPL(CUDA, OneDeviceGuard)

} // namespace
