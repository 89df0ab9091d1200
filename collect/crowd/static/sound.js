// Tones of pages that must be heard as well as seen.

// Gives tone(frequency in Hz, seconds, seconds from now).
export function makeTone() {
  let context = null;
  // Browsers let a page be heard once it was touched.
  addEventListener("pointerdown", () => context?.resume(), { passive: true });

  return function tone(frequency, seconds, after = 0) {
    context ??= new AudioContext();
    const begins = context.currentTime + after;
    const oscillator = new OscillatorNode(context, { frequency, type: "triangle" });
    const gain = new GainNode(context, { gain: 0 });
    gain.gain.setValueAtTime(0, begins);
    gain.gain.linearRampToValueAtTime(0.35, begins + 0.015);
    gain.gain.linearRampToValueAtTime(0, begins + seconds);
    oscillator.connect(gain).connect(context.destination);
    oscillator.start(begins);
    oscillator.stop(begins + seconds);
  };
}
