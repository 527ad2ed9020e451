// Inside a frame of its own in a notebook: light or dark as the text around it, and as high as what it holds.
const around = (() => { try { return window.frameElement; } catch { return null; } })();
const darkMachine = matchMedia('(prefers-color-scheme: dark)');

function dress() {
  const style = around && getComputedStyle(around), rgb = style?.color.match(/[\d.]+/g)?.slice(0, 3).map(Number);
  const bright = rgb && style.color.startsWith('rgb') ? rgb.reduce((a, b) => a + b) > 3 * 128 : darkMachine.matches;
  document.documentElement.classList.toggle('dark', bright);
  document.documentElement.style.colorScheme = style?.colorScheme ?? '';      // the same as outside, or the ground is not see-through
}

dress();
darkMachine.addEventListener('change', dress);
document.addEventListener('pointerenter', dress);
if (around) {
  new MutationObserver(dress).observe(around.ownerDocument.body, { attributes: true });
  new ResizeObserver(() => { around.style.height = `${Math.ceil(document.documentElement.offsetHeight)}px`; }).observe(document.documentElement);
}
