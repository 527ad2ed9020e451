// props.value is JSON from Python: {address, python, note}. The address bar follows it; nothing is asked of the server.
const find = selector => element.querySelector(selector);
let told = null;

// In a frame without leave to use the clipboard the old way is the one that works.
async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = document.createElement('textarea');
    area.value = text;
    area.style.cssText = 'position: fixed; opacity: 0';
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    if (!done) { find('details').open = true; find('output').textContent = 'This browser does not allow copying; select the text below.'; return; }
  }
  find('output').textContent = `${what} copied.`;
}

function take(news) {
  told = news;
  find('.share').hidden = !told;
  if (!told) return;
  find('output').textContent = told.note ?? '';
  shown();
  find('.link').hidden = !told.address;
  if (told.address) window.mfmVisit?.(told.tab, told.address);
}

// The picture as it is looked at: the address says so, and the code does.
function python() {
  const show = window.mfmShow?.();
  if (!show) return told.python;
  const parts = (show === '-' ? [] : show.split(',')).map(part => part.split(':')), name = JSON.stringify;
  const contrast = parts.filter(part => part[1]).map(([channel, levels]) => `${name(decodeURIComponent(channel))}: (${levels.replace('-', ', ')})`);
  const look = `shown=[${parts.map(([channel]) => name(decodeURIComponent(channel))).join(', ')}], contrast={${contrast.join(', ')}}`;
  return told.python.replace('display.Gallery(answer)', () => `display.Gallery(answer, ${look})`);
}

const shown = () => { if (told) find('pre').textContent = python(); };

find('.link').addEventListener('click', () => copy(new URL(window.mfmAddress?.(told.tab, told.address) ?? told.address, location.href.split(/[?#]/)[0]).href, 'Link'));
find('.code').addEventListener('click', () => copy(python(), 'Code'));
window.addEventListener('mfm-channels', shown);
watch('value', () => take(props.value ? JSON.parse(props.value) : null));
if (props.value) take(JSON.parse(props.value));
