// What a warp does that tests/emulator counts, and that costs nothing on a GPU: see chip::note().
#pragma once

namespace timecycle::chip {

enum class Event { flush, insertion, write, count };

}  // namespace timecycle::chip
