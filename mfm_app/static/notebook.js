// Inside a frame of its own in a notebook: light or dark as the text around it, and as high as its content.
const around = (() => { try { return window.frameElement; } catch { return null; } })();
const darkMachine = matchMedia('(prefers-color-scheme: dark)');

function setTheme() {
  const style = around && getComputedStyle(around), rgb = style?.color.match(/[\d.]+/g)?.slice(0, 3).map(Number);
  const bright = rgb && style.color.startsWith('rgb') ? rgb.reduce((a, b) => a + b) > 3 * 128 : darkMachine.matches;
  document.documentElement.classList.toggle('dark', bright);
  // The same as outside, or the background is not transparent.
  document.documentElement.style.colorScheme = style?.colorScheme ?? '';
}

setTheme();
darkMachine.addEventListener('change', setTheme);
document.addEventListener('pointerenter', setTheme);
if (around) {
  new MutationObserver(setTheme).observe(around.ownerDocument.body, { attributes: true });
  const fit = () => { around.style.height = `${Math.ceil(document.documentElement.offsetHeight)}px`; };
  new ResizeObserver(fit).observe(document.documentElement);
}
