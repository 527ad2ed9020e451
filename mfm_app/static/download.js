// A file that comes as a message and is saved by the browser, so that none is kept on the server.
watch('value', () => {
  if (!props.value) return;
  const { name, type, data } = JSON.parse(props.value);
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
});
