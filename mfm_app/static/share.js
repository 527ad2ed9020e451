// props.value is JSON from Python: {tab, address, python, note}. The address bar follows it; the server is not asked.
const find = selector => element.querySelector(selector);
let shared = null;

// In a frame that may not use the clipboard the old way is the one that works.
async function copy(text, name) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = document.createElement('textarea');
    area.value = text;
    area.style.cssText = 'position: fixed; opacity: 0';
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    if (!done) {
      find('details').open = true;
      find('output').textContent = 'This browser does not allow copying; select the text below.';
      return;
    }
  }
  find('output').textContent = `${name} copied.`;
}

function load(message) {
  shared = message;
  find('.share').hidden = !shared;
  if (!shared) return;
  find('output').textContent = shared.note ?? '';
  showCode();
  find('.link').hidden = !shared.address;
  if (shared.address) window.mfmVisit?.(shared.tab, shared.address);
}

// The picture as it is looked at: the address says so, and the code does.
function python() {
  const show = window.mfmShow?.();
  if (!show) return shared.python;
  const channels = (show === '-' ? [] : show.split(',')).map(part => part.split(':'));
  const name = channel => JSON.stringify(decodeURIComponent(channel));
  const levels = ([channel, range]) => `${name(channel)}: (${range.replace('-', ', ')})`;
  const shown = channels.map(([channel]) => name(channel)).join(', ');
  const contrast = channels.filter(([, range]) => range).map(levels).join(', ');
  const call = `display.Gallery(answer, shown=[${shown}], contrast={${contrast}})`;
  return shared.python.replace('display.Gallery(answer)', () => call);
}

function showCode() { if (shared) find('pre').textContent = python(); }

find('.link').addEventListener('click', () => {
  const address = window.mfmAddress?.(shared.tab, shared.address) ?? shared.address;
  copy(new URL(address, location.href.split(/[?#]/)[0]).href, 'Link');
});
find('.code').addEventListener('click', () => copy(python(), 'Code'));
window.addEventListener('mfm-channels', showCode);
watch('value', () => load(props.value ? JSON.parse(props.value) : null));
if (props.value) load(JSON.parse(props.value));
