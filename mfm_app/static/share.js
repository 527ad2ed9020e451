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
  const show = window.mfmShow?.(), call = `display.Gallery(answer, ${show && view(show)})`;
  const code = show ? shared.python.replace('display.Gallery(answer)', () => call) : shared.python;
  return code + (window.mfmReal?.() ? shared.beside ?? '' : '');
}

// What `show` of an address is as arguments of `viz.show`.
function view(show) {
  const [composite, how = '', table = 'grey'] = show.split(';'), [as, ...rest] = how.split(':');
  const name = text => JSON.stringify(decodeURIComponent(text)), range = text => `(${text.replace('-', ', ')})`;
  if (as === 'rxrx1') return 'rxrx1=True';
  if (as === 'grid') return `grid=${range(rest[0] ?? '0-255')}, table="${table}"`;
  const named = (argument, entries) => entries.length ? `, ${argument}={${entries.join(', ')}}` : '';
  const one = rest[1] ? [`${name(rest[0])}: ${range(rest[1])}`] : [];
  if (as === 'one') return `one=${name(rest[0])}, table="${table}"${named('contrast', one)}`;
  const parts = (composite === '-' ? [] : composite.split(',')).map(part => part.split(/[@:]/)[0]);
  const found = sign => (composite === '-' ? [] : composite.split(',')).map((part, i) => [
    parts[i], part.match(RegExp(`${sign}([^@:]+)`))?.[1]]).filter(([, value]) => value);
  const contrast = found(':').map(([channel, levels]) => `${name(channel)}: ${range(levels)}`);
  const colours = found('@').map(([channel, colour]) => `${name(channel)}: ${name(colour)}`);
  return `shown=[${parts.map(name).join(', ')}]${named('contrast', contrast)}${named('colours', colours)}`;
}

function showCode() { if (shared) find('pre').textContent = python(); }

find('.link').addEventListener('click', () => {
  const address = window.mfmAddress?.(shared.tab, shared.address) ?? shared.address;
  copy(new URL(address, location.href.split(/[?#]/)[0]).href, 'Link');
});
find('.code').addEventListener('click', () => copy(python(), 'Code'));
for (const change of ['mfm-channels', 'mfm-real']) window.addEventListener(change, showCode);
watch('value', () => load(props.value ? JSON.parse(props.value) : null));
if (props.value) load(JSON.parse(props.value));
